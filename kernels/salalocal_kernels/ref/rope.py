"""Rotary position embedding, NeoX layout (halves)."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, first_position: int, theta: float) -> Tensor:
    """Rotates every head by its token's absolute position.

    Element i and i + D/2 form a pair rotated by t * theta^(-2i/D). Angles are formed in float32 in every run, like
    the vendor's tables; sine and cosine are taken in the wider of float32 and x's dtype.

    Args:
        x: [T, H, D] with even D; token r is at position first_position + r.
        first_position: absolute position of the first row, 0-based.
        theta: base of the frequencies.

    Returns:
        [T, H, D], dtype of x.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    positions = torch.arange(first_position, first_position + x.shape[0], device=x.device)
    return rotate(x, rope_table(positions, x.shape[-1], theta, wide))


def rope_table(positions: Tensor, dim: int, theta: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines and sines for tokens at `positions`, the same for every head and layer.

    Args:
        positions: [T], integers.
        dim: channels of a head, even.
        theta: base of the frequencies.
        dtype: float32 or float64, in which sine and cosine are taken; angles are formed in float32.

    Returns:
        [T, dim]: dim/2 cosines, then dim/2 sines.
    """
    angles = (positions.float()[:, None] * frequencies(dim, theta, positions.device)).to(dtype)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """Radians per token of every pair, float32 [dim/2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / theta**exponents


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`rope` with the angles given: x [T, H, D], table [T, D] from `rope_table`, at least as wide as x."""
    cos, sin = table[:, None].chunk(2, dim=-1)
    low, high = x.to(table.dtype).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)
