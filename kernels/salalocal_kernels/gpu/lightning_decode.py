"""One token through lightning attention: one program for a head and a slice of the value channels.

Bound by bytes where the state is large (32 heads x 128 x 128 in float32: 2 MiB in, 2 MiB out, 1.4 us at 3 TB/s) and by
latency everywhere else: there are 128 programs, each asks for its part of the state before it looks at q and k, and
norms and RoPE of q and k are repeated by the slices of a head, which costs nothing that anyone waits for.

The output norm needs all heads of the token. The last program to arrive applies it: each stores its output, then adds
to a counter with release order behind a barrier; the one that finds all others counted has acquired their stores. No
program waits for another, so nothing is assumed about which of them run at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait

# 32 columns of a float32 state are 128 bytes of every row; with 8 warps a thread holds 16 numbers of the state, and 16
# channels where it is of the last program and norms 4,096.
_SLICE = 32
_NUM_WARPS = 8


@triton.jit
def _expm1_of_negative(slope):
    # exp(-slope) rounded to float32 is off by up to 3e-8, which a head that remembers 256 tokens adds up to 1e-5; the
    # small difference from 1 keeps its digits. Below 0.3 the next term of the series is under 1e-9 of the sum.
    x = -slope
    series = 1.0 + x / 6 * (1.0 + x / 7 * (1.0 + x / 8))
    for term in tl.static_range(5, 1, -1):
        series = 1.0 + x / term * series
    return tl.where(slope < 0.3, x * series, tl.exp(x) - 1.0)


@triton.jit
def _load(x_ptr, weight_ptr, dims, partners):
    """One head in float32 and its weight (without one, anything), each also in the order of RoPE's partners."""
    x, partner = tl.load(x_ptr + dims).to(tl.float32), tl.load(x_ptr + partners).to(tl.float32)
    weight, partner_weight = x, partner
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + dims).to(tl.float32)
        partner_weight = tl.load(weight_ptr + partners).to(tl.float32)
    return x, partner, weight, partner_weight


@triton.jit
def _prepare(
    x, partner, weight, partner_weight, cos, sin, eps,
    DIM: tl.constexpr, IS_NORMED: tl.constexpr, IS_ROTATED: tl.constexpr,
):  # fmt: skip
    """Norm, then RoPE; partners are half a head away, and `sin` has their sign in it."""
    if IS_NORMED:
        factor = 1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / DIM + eps)
        x, partner = x * factor * weight, partner * factor * partner_weight
    if IS_ROTATED:
        x = x * cos + partner * sin
    return x


@triton.jit
def _lightning_decode_kernel(
    q_ptr, k_ptr, v_ptr, q_weight_ptr, k_weight_ptr, table_ptr, slopes_ptr, state_ptr, new_state_ptr,
    out_weight_ptr, gate_ptr, between_ptr, arrived_ptr, out_ptr,
    scale, eps, stride_qh, stride_kh, stride_vh,
    GROUP: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, SLICE: tl.constexpr, CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr, FINISHES: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    part, head = tl.program_id(0), tl.program_id(1)
    key_dims = tl.arange(0, DK)
    value_dims = part * SLICE + tl.arange(0, SLICE)
    places = head.to(tl.int64) * DK * DV + key_dims[:, None] * DV + value_dims[None, :]
    wait(IS_EARLY)
    # Every load is asked for before the first sum, which waits behind a barrier.
    state = tl.load(state_ptr + places)
    slope = tl.load(slopes_ptr + head)
    v = tl.load(v_ptr + (head // GROUP) * stride_vh + value_dims).to(tl.float32)
    is_low = key_dims < DK // 2
    pairs = tl.where(is_low, key_dims, key_dims - DK // 2)
    partners = tl.where(is_low, key_dims + DK // 2, key_dims - DK // 2)
    k, k_partner, k_weight, k_partner_weight = _load(
        k_ptr + (head // GROUP) * stride_kh, k_weight_ptr, key_dims, partners
    )
    q, q_partner, q_weight, q_partner_weight = _load(q_ptr + head * stride_qh, q_weight_ptr, key_dims, partners)
    cos, sin = k, k
    if table_ptr is not None:
        cos, sin = tl.load(table_ptr + pairs), tl.load(table_ptr + DK // 2 + pairs)
        sin = tl.where(is_low, -sin, sin)
    is_rotated: tl.constexpr = table_ptr is not None
    k = _prepare(k, k_partner, k_weight, k_partner_weight, cos, sin, eps, DK, k_weight_ptr is not None, is_rotated)
    q = _prepare(q, q_partner, q_weight, q_partner_weight, cos, sin, eps, DK, q_weight_ptr is not None, is_rotated)
    state = state + state * _expm1_of_negative(slope) + k[:, None] * v[None, :]
    tl.store(new_state_ptr + places, state)
    out = tl.sum(q[:, None] * state, 0) * scale
    tl.store(between_ptr + head * DV + value_dims, out.to(between_ptr.dtype.element_ty))
    if FINISHES:
        programs = tl.num_programs(0) * tl.num_programs(1)
        tl.debug_barrier()  # every thread's stores lie before the one thread's addition
        if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1:
            tl.debug_barrier()
            tl.store(arrived_ptr, 0)  # for the next launch
            channels = tl.arange(0, WIDTH)
            is_real = channels < CHANNELS
            # Around the L1 cache, which knows nothing of other multiprocessors' stores.
            x = tl.load(between_ptr + channels, mask=is_real, other=0.0, cache_modifier=".cg")
            if gate_ptr is not None:
                gate = tl.load(gate_ptr + channels, mask=is_real, other=0.0).to(tl.float32)
            if out_weight_ptr is not None:
                weight = tl.load(out_weight_ptr + channels, mask=is_real, other=0.0).to(tl.float32)
                x = x * (1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / CHANNELS + eps)) * weight
            if gate_ptr is not None:
                x = x * tl.sigmoid(gate)
            tl.store(out_ptr + channels, x.to(out_ptr.dtype.element_ty), mask=is_real)


def lightning_decode(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float, state: Tensor) -> Tensor:
    """The op of `ref/lightning.py`, same arguments and result; dtypes up to float32, the state contiguous float32, head
    dimensions powers of two."""
    out = torch.empty(q.shape[0], v.shape[-1], dtype=q.dtype, device=q.device)
    _launch(q, k, v, None, None, None, slopes, scale, state, state, None, None, 0.0, between=out, arrived=None, out=out)
    return out


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
    arrived: Tensor,
    new_state: Tensor | None = None,
) -> Tensor:
    """The op of `ref/lightning_step.py`, same arguments and result but for `arrived`; as `lightning_decode` otherwise;
    rounds once, at the end.

    Args:
        arrived: [1] int32, 0; is 0 again afterwards. Launches that may run at once need one each.
    """
    channels = q.shape[0] * v.shape[-1]
    between = torch.empty(channels, dtype=torch.float32, device=q.device)
    out = torch.empty(channels, dtype=q.dtype, device=q.device)
    _launch(
        q, k, v, q_weight, k_weight, table, slopes, scale, state, state if new_state is None else new_state, out_weight,
        gate, eps, between=between, arrived=arrived, out=out,
    )  # fmt: skip
    return out


def _launch(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, table: Tensor | None,
    slopes: Tensor, scale: float, state: Tensor, new_state: Tensor, out_weight: Tensor | None, gate: Tensor | None,
    eps: float, *, between: Tensor, arrived: Tensor | None, out: Tensor,
) -> None:  # fmt: skip
    heads, key_dim, value_dim = state.shape
    assert state.dtype == torch.float32
    assert state.is_contiguous()
    assert new_state.is_contiguous(), "written in place"
    assert (new_state.shape, new_state.dtype) == (state.shape, state.dtype)
    assert all(dim == triton.next_power_of_2(dim) for dim in (key_dim, value_dim))
    assert table is None or table.dtype == torch.float32
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    q_weight, k_weight, table, out_weight, gate = (
        x if x is None else x.contiguous() for x in (q_weight, k_weight, table, out_weight, gate)
    )
    part = min(_SLICE, value_dim)
    _lightning_decode_kernel[(value_dim // part, heads)](
        q, k, v, q_weight, k_weight, table, slopes.contiguous(), state, new_state,
        out_weight, gate, between, arrived, out,
        scale, eps, q.stride(0), k.stride(0), v.stride(0),
        GROUP=heads // k.shape[0], DK=key_dim, DV=value_dim, SLICE=part, CHANNELS=heads * value_dim,
        WIDTH=triton.next_power_of_2(heads * value_dim), FINISHES=arrived is not None,
        num_warps=_NUM_WARPS, **overlapped(q.device),
    )  # fmt: skip
