"""Golden cases on an NVIDIA GPU, in true float32, float64 and bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salalocal.evaluate.golden import DtypeName, verify_cases

GOLDEN = Path(__file__).parent.parent / "golden"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_golden_cases_hold_on_cuda(dtype: DtypeName) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    results = verify_cases(GOLDEN, dtype=dtype, device="cuda")
    assert len(results) == 3
    assert [(result.case, result.reason) for result in results if not result.passed] == []
