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
    tokens, _, dim = x.shape
    wide = torch.promote_types(x.dtype, torch.float32)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=x.device) / dim
    frequencies = 1.0 / theta**exponents
    positions = torch.arange(first_position, first_position + tokens, device=x.device)
    angles = (positions.float()[:, None] * frequencies).to(wide)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    low, high = x.to(wide).chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)
