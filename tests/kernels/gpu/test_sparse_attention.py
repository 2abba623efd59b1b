"""The sparse attention kernel against its definition, without a GPU: every case in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numbers_of import as_array, assert_close
from sparse_cases import CASES, Case
from torch import Tensor

from salalocal_kernels.ref.attention import sparse_attention_prefill

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; the development extra has it on Linux x86-64",
)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the kernel gave for each case, all of them from one process."""
    out = tmp_path_factory.mktemp("interpreted") / "out.pt"
    run = subprocess.run(
        [sys.executable, Path(__file__).parent / "interpret.py", out],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Tensor] = torch.load(out, weights_only=True)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_interpreted_kernel_agrees_with_the_definition(interpreted: dict[str, Tensor], case: Case) -> None:
    q, pages, table, blocks = case.inputs(rest=0.0)
    expected = sparse_attention_prefill(q.double(), pages.double(), table, blocks, case.first, case.scale)
    assert_close(interpreted[str(case)], as_array(expected), "out", case.dtype)
