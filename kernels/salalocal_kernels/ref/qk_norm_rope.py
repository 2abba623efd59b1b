"""What queries and keys go through before linear attention: a norm per head, then RoPE. Knows no attention."""

from __future__ import annotations

from torch import Tensor

from salalocal_kernels.ref.rms_norm import rms_norm
from salalocal_kernels.ref.rope import rotate


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    table: Tensor | None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rms_norm` over every head's channels, then `rope`, on q and on k.

    This definition rounds after each of the steps, as the network's separate operations do; an implementation may keep
    what lies between them in float32.

    Args:
        q: [T, H, D], any float dtype, D even.
        k: [T, Hkv, D], dtype of q.
        q_weight: [D], dtype of q; None where queries have no norm.
        k_weight: [D], dtype of k; None where keys have no norm.
        eps: added to the mean square.
        table: [T, D] float32 (float64 in a float64 run), from `rope_table`; None where there is no RoPE.
        in_place: q and k are overwritten with the result, which for a long chunk spares two large tensors.

    Returns:
        q and k in the shapes and dtype given, new ones unless `in_place`. Source: the vendor's lightning layer.
    """

    def prepare(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            x = rms_norm(x, weight, eps)
        return x if table is None else rotate(x, table)

    if in_place:
        return q.copy_(prepare(q, q_weight)), k.copy_(prepare(k, k_weight))
    return prepare(q, q_weight), prepare(k, k_weight)
