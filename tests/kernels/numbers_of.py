"""Inputs and the error measure of the op tests. Knows no op."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

# What an op may lose against a float64 loop: RMS of the difference over RMS of the reference. bfloat16 keeps 8 bits
# of its inputs and of its result; the loop is given the same rounded inputs, so only the result's rounding is left.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3}

dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normal numbers, the same for the same seed and shape."""
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same numbers with a gap after every element, and dimensions stored in reverse."""
    reverse = tuple(reversed(range(x.ndim)))
    wide = x.permute(reverse).repeat_interleave(2, dim=x.ndim - 1)
    view = wide[..., ::2].permute(reverse)
    assert not view.is_contiguous() or x.numel() < 2
    return view


def as_array(x: Tensor) -> np.ndarray:
    """float64 numpy copy."""
    return x.double().numpy()


def assert_close(found: Tensor, expected: np.ndarray, name: str, dtype: torch.dtype) -> None:
    """RMS(difference) / RMS(expected) within the dtype's tolerance; a NaN never is."""
    assert tuple(found.shape) == expected.shape, f"{name}: shape {tuple(found.shape)}, expected {expected.shape}"
    assert found.dtype == dtype, f"{name}: {found.dtype}, expected {dtype}"
    if not expected.size:
        return
    difference = float(np.sqrt(np.mean((as_array(found) - expected) ** 2)))
    size = float(np.sqrt(np.mean(expected**2)))
    assert difference <= TOLERANCE[dtype] * max(size, 1e-300), f"{name}: RMS {difference:.2e} of {size:.2e}"
