"""compress_keys against means of slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided

from salalocal_kernels import compress_keys


def naive(keys: np.ndarray, kernel_size: int, stride: int) -> np.ndarray:
    heads, tokens, dim = keys.shape
    means = [
        keys[:, start : start + kernel_size].mean(1)
        for start in range(0, tokens, stride)
        if start + kernel_size <= tokens
    ]
    return np.stack(means, axis=1) if means else np.zeros((heads, 0, dim))


def test_by_hand() -> None:
    keys = torch.tensor([[[0.0], [1.0], [2.0], [9.0], [100.0], [7.0]]])
    # stride 1, windows of 2; stride 2, windows of 4
    assert compress_keys(keys, 2, 1).flatten().tolist() == [0.5, 1.5, 5.5, 54.5, 53.5]
    assert compress_keys(keys, 4, 2).flatten().tolist() == [3.0, 29.5]


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (1, 0), (7, 0), (8, 1), (9, 1), (11, 1), (12, 2)])
def test_only_complete_windows_count(tokens: int, count: int) -> None:
    assert compress_keys(torch.zeros(2, tokens, 3), 8, 4).shape == (2, count, 3)


@dtypes
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("stride", [1, 3, 4])
@pytest.mark.parametrize("level", ["fine", "coarse"])
def test_against_slices(dtype: torch.dtype, tokens: int, stride: int, level: str) -> None:
    kernel, step = (2 * stride, stride) if level == "fine" else (8 * stride, 4 * stride)
    keys = random(3, tokens, 5, dtype=dtype)
    assert_close(compress_keys(strided(keys), kernel, step), naive(as_array(keys), kernel, step), "means", dtype)


def test_bfloat16_is_summed_in_float32() -> None:
    keys = torch.full((1, 512, 1), 1.0078125, dtype=torch.bfloat16)
    assert compress_keys(keys, 512, 128).item() == 1.0078125
