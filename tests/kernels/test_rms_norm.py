"""rms_norm against hand-computed numbers and a float64 loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided

from salalocal_kernels import rms_norm


def test_by_hand() -> None:
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 10.0]), eps=0.0)
    # mean square 12.5; 3 / sqrt(12.5) = 0.848528, 4 / sqrt(12.5) = 1.131371
    assert out[0].tolist() == pytest.approx([2 * 0.8485281, 10 * 1.1313708], rel=1e-6)


def test_eps_is_added_to_the_mean_square_not_to_the_root() -> None:
    out = rms_norm(torch.full((1, 4), 1e-3, dtype=torch.float64), torch.ones(4, dtype=torch.float64), eps=1e-6)
    assert out[0, 0].item() == pytest.approx(1e-3 / np.sqrt(2e-6), rel=1e-12)


def test_zeros_stay_zero() -> None:
    assert rms_norm(torch.zeros(2, 3), torch.ones(3), 1e-6).tolist() == [[0, 0, 0]] * 2


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 16), (3, 2, 31)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_against_a_loop(dtype: torch.dtype, shape: tuple[int, ...], layout: str) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype, seed=1)
    given = strided(x) if layout == "strided" else x
    rows, scale = as_array(x).reshape(-1, shape[-1]), as_array(weight)
    expected = np.stack([row / np.sqrt((row**2).mean() + 1e-6) * scale for row in rows]).reshape(shape)
    assert_close(rms_norm(given, weight, 1e-6), expected, "out", dtype)


def test_the_quotient_is_rounded_before_it_meets_the_weight() -> None:
    x, weight = random(50, 64, dtype=torch.float32), random(64, seed=1).bfloat16()
    wide = x.double()
    quotient = (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).float().bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-6), quotient * weight)


def test_statistic_of_bfloat16_is_taken_in_float32() -> None:
    # 1 + 2^-8 squared and summed in bfloat16 would stop growing at 256.
    x = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(4096, dtype=torch.bfloat16), 0.0).eq(1).all()
