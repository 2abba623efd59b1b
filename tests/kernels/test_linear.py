"""linear: a matrix product with rows of the weight, no bias."""

from __future__ import annotations

import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided

from salalocal_kernels import linear


def test_by_hand() -> None:
    out = linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [0.0, 1.0]]))
    assert out.tolist() == [[11.0, 17.0, 2.0]]


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (2, 3, 9)], ids=str)
def test_against_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape, dtype=dtype), random(11, shape[-1], dtype=dtype, seed=1)
    assert_close(linear(strided(x), weight), as_array(x) @ as_array(weight).T, "out", dtype)
