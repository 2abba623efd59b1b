"""The golden cases with K and V in host memory and the least budget there is: exact, in pieces and from slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import salalocal
from salalocal.engine.engine import Engine
from salalocal.errors import DoesNotFit
from salalocal.evaluate import golden
from salalocal.evaluate.golden import verify_cases

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(autouse=True)
def _least_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: Path, **options: Any) -> Engine:
        with pytest.raises(DoesNotFit) as caught:
            salalocal.load(path, **options, kv_budget=1)
        return salalocal.load(path, **options, kv_budget=caught.value.needed_bytes)

    monkeypatch.setattr(golden, "load", load)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, None])
def test_small_cases_at_every_chunk_size(chunk_size: int | None) -> None:
    (result,) = verify_cases(GOLDEN, names=["p3"], chunk_sizes=[chunk_size])
    assert result.passed, result.reason
    assert max(result.prefill_error, result.decode_error, result.state_error) < 1e-3
    assert result.changed_sets_within_margin == result.argmax_mismatches == 0
    assert result.compared_sets > 0


def test_float64_tightens_the_agreement() -> None:
    (result,) = verify_cases(GOLDEN, names=["p3"], dtype="float64", chunk_sizes=[64])
    assert result.passed, result.reason
    assert max(result.prefill_error, result.decode_error, result.state_error) < 1e-5


@pytest.mark.parametrize("chunk_size", [1000, None])
def test_the_released_sparse_sizes(chunk_size: int | None) -> None:
    (result,) = verify_cases(GOLDEN, names=["p6"], chunk_sizes=[chunk_size])
    assert result.passed, result.reason
    assert result.compared_sets == 2 * (9013 + 43)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk_size", [1000, None])
@pytest.mark.parametrize("name", ["p3", "p6"])
def test_on_the_gpu(name: str, chunk_size: int | None, dtype: Any) -> None:
    (result,) = verify_cases(GOLDEN, names=[name], device="cuda", dtype=dtype, chunk_sizes=[chunk_size])
    assert result.passed, result.reason
