"""The residual addition and the norm that follows it."""

from __future__ import annotations

from torch import Tensor

from salalocal_kernels.ref.rms_norm import rms_norm


def add_rms_norm(x: Tensor, branch: Tensor, ratio: float, weight: Tensor, eps: float) -> Tensor:
    """x += ratio * branch, and the norm of the sum: what stands between one branch of a layer and the next.

    Args:
        x: [..., D] residual stream, float32 (float64 in a float64 run), changed in place.
        branch: [..., D], dtype of the activations.
        ratio: residual scale; the product is taken in the dtype of x.
        weight: [D], dtype of the activations.
        eps: added to the mean square.

    Returns:
        [..., D], dtype of weight.
    """
    x.add_(branch.to(x.dtype) * ratio)
    return rms_norm(x, weight, eps)
