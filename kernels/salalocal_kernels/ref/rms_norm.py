"""Root-mean-square norm."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    The statistic is at least float32; the quotient is rounded to the weight's dtype *before* it meets the weight, as
    the vendor does (SALA maths, skeleton: RMSNorm).

    Args:
        x: [..., D], any float dtype; a residual stream may be wider than the weight.
        weight: [D].
        eps: added to the mean square.

    Returns:
        [..., D], dtype of weight.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normalized.to(weight.dtype) * weight
