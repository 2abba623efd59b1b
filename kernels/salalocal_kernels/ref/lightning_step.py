"""One token through a lightning layer, between its projections: norms, RoPE, state, output norm and gate."""

from __future__ import annotations

from torch import Tensor

from salalocal_kernels.ref.lightning import lightning_decode
from salalocal_kernels.ref.norm_gate import norm_gate
from salalocal_kernels.ref.rms_norm import rms_norm
from salalocal_kernels.ref.rope import rotate


def lightning_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    table: Tensor | None,
    slopes: Tensor,
    scale: float,
    state: Tensor,
    out_weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    new_state: Tensor | None = None,
) -> Tensor:
    """norm_gate(lightning_decode(rope(rms_norm(q)), rope(rms_norm(k)), v)); updates the state.

    This definition rounds after each of the steps, as the network's separate operations do; an implementation may keep
    what lies between them in float32.

    Args:
        q: [H, D], any float dtype, D even. k, v: [Hkv, D], dtype of q.
        q_weight, k_weight: [D], dtype of q; None where there is no such norm.
        table: [1, D] float32 (float64 in a float64 run), from `rope_table`; None where there is no RoPE. The position
            is in it and nowhere else, so a captured CUDA graph is moved on by a new table.
        slopes: [H], dtype of state.
        scale: factor on the attention's output.
        state: [H, D, D] float32 or float64, before this token; without `new_state` overwritten by the state
            after it.
        out_weight: [H D], dtype of q; None where the output has no norm.
        gate: [H D], dtype of q, before the sigmoid; None where the output has no gate.
        eps: added to the mean squares.
        new_state: [H, D, D] like `state`, which then stays; overwritten by the state after this token.

    Returns:
        [H D] in q's dtype. Source: the vendor's lightning layer.
    """
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps)
    if table is not None:
        q, k = rotate(q[None], table)[0], rotate(k[None], table)[0]
    if new_state is not None:
        state = new_state.copy_(state)
    out = lightning_decode(q, k, v, slopes, scale, state).reshape(1, -1)
    return norm_gate(out, out_weight, None if gate is None else gate[None], eps)[0]
