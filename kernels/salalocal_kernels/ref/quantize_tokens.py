"""Rows rounded to 8 bits under a scale each. Knows no products."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest number of each dtype that a row's largest number becomes.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantize_tokens(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rounds every row to nearest, its largest magnitude to the largest number of `dtype`.

    Args:
        x: [T, K], any float dtype; activations, or the rows of a weight matrix.
        dtype: int8 or float8_e4m3fn.

    Returns:
        Codes [T, K] of `dtype`, and scales [T] float32 with x ~ code * scale; a row of zeros has scale 0.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(-1, keepdim=True) if x.numel() else wide.new_zeros(x.shape[0], 1)
    steps = wide * torch.where(largest > 0, LARGEST[dtype] / largest, 0)
    codes = steps.round() if dtype == torch.int8 else steps
    return codes.to(dtype), (largest[:, 0] / LARGEST[dtype]).to(torch.float32)
