"""Heads of fewer channels than `tl.dot` multiplies: made wider with zeros, which change no product.

Only test models have them, so a copy of their keys is cheaper than a mask in every kernel.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

LEAST_CHANNELS = 16


def widened(x: Tensor) -> Tensor:
    """x [..., D] with zeros up to LEAST_CHANNELS; x itself where it has as many."""
    missing = LEAST_CHANNELS - x.shape[-1]
    return x if missing <= 0 else functional.pad(x, (0, missing))
