"""y = x W^T for packed matrices that share an input. Knows planes, not layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from salalocal_kernels.ref.planes import Planes, plane_values


def packed_linear(x: Tensor, matrices: Sequence[Planes]) -> tuple[Tensor, ...]:
    """Multiplies rows by several packed matrices.

    Args:
        x: [..., K], any float dtype.
        matrices: each [N, K]; formats may differ.

    Returns:
        One [..., N] for each matrix, dtype of x.
    """
    return tuple(functional.linear(x, plane_values(matrix, x.dtype)) for matrix in matrices)


def packed_silu_mul(x: Tensor, gate: Planes, up: Planes) -> Tensor:
    """silu(x gate^T) * (x up^T), the first half of a SwiGLU feed-forward.

    Args:
        x: [..., K], any float dtype.
        gate: [N, K].
        up: [N, K]; its format may differ.

    Returns:
        [..., N], dtype of x.
    """
    gated, upped = packed_linear(x, (gate, up))
    return functional.silu(gated) * upped
