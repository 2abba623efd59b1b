"""The middle of a SwiGLU feed-forward: one half gates the other. Knows no products."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, where silu(x) = x / (1 + exp(-x)).

    Args:
        gate: [T, N], any float dtype.
        up: [T, N], dtype of gate; both may be halves of one [T, 2 N].

    Returns:
        [T, N], dtype of gate.
    """
    return functional.silu(gate) * up
