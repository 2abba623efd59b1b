"""Norm and RoPE of queries and keys in one pass: one program for some heads of one token.

Bound by bytes: q and k once in and once out, 256 MiB for 8,192 tokens of 32 + 32 heads x 128 in bfloat16, 0.09 ms at
3 TB/s. The table of cosines and sines adds 4 MiB, read once per token and then from the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a program: with 4 warps a thread holds 32 of them, all loads in flight before the first is used.
_ELEMENTS = 4096
_NUM_WARPS = 4


@triton.jit
def _prepare(
    x_ptr, out_ptr, weight_ptr, table_ptr, token, first_head, heads, stride_xt, stride_xh, stride_ot, stride_oh, eps,
    ROWS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    rows = first_head + tl.arange(0, ROWS)
    pairs = tl.arange(0, HALF)
    is_real = (rows < heads)[:, None] & (pairs < DIM // 2)[None, :]
    places = x_ptr + token * stride_xt + rows[:, None] * stride_xh + pairs[None, :]
    low = tl.load(places, mask=is_real, other=0.0).to(tl.float32)
    high = tl.load(places + DIM // 2, mask=is_real, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        low_weight = tl.load(weight_ptr + pairs, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
        high_weight = tl.load(weight_ptr + DIM // 2 + pairs, mask=pairs < DIM // 2, other=0.0).to(tl.float32)
        factor = 1.0 / tl.sqrt_rn(tl.sum(low * low + high * high, 1) / DIM + eps)
        low = low * factor[:, None] * low_weight[None, :]
        high = high * factor[:, None] * high_weight[None, :]
    if table_ptr is not None:
        cos = tl.load(table_ptr + token * DIM + pairs, mask=pairs < DIM // 2, other=0.0)[None, :]
        sin = tl.load(table_ptr + token * DIM + DIM // 2 + pairs, mask=pairs < DIM // 2, other=0.0)[None, :]
        low, high = low * cos - high * sin, high * cos + low * sin
    outs = out_ptr + token * stride_ot + rows[:, None] * stride_oh + pairs[None, :]
    tl.store(outs, low.to(out_ptr.dtype.element_ty), mask=is_real)
    tl.store(outs + DIM // 2, high.to(out_ptr.dtype.element_ty), mask=is_real)


@triton.jit
def _qk_norm_rope_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, q_weight_ptr, k_weight_ptr, table_ptr,
    eps, stride_qt, stride_qh, stride_kt, stride_kh, stride_qot, stride_qoh, stride_kot, stride_koh,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts: tl.constexpr = (HEADS + ROWS - 1) // ROWS
    if part < q_parts:
        _prepare(q_ptr, q_out_ptr, q_weight_ptr, table_ptr, token, part * ROWS, HEADS, stride_qt, stride_qh,
                 stride_qot, stride_qoh, eps, ROWS, DIM, HALF)  # fmt: skip
    else:
        _prepare(k_ptr, k_out_ptr, k_weight_ptr, table_ptr, token, (part - q_parts) * ROWS, KV_HEADS, stride_kt,
                 stride_kh, stride_kot, stride_koh, eps, ROWS, DIM, HALF)  # fmt: skip


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    table: Tensor | None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """The op of `ref/qk_norm_rope.py`, same arguments and result, for dtypes up to float32; rounds once, at the end."""
    tokens, heads, dim = q.shape
    kv_heads = k.shape[1]
    # A program has loaded all of a head before it stores any of it.
    q_out, k_out = (q, k) if in_place else (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    if tokens == 0:
        return q_out, k_out
    assert max(q.element_size(), k.element_size()) <= 4
    assert dim % 2 == 0
    assert q_out.stride(-1) == k_out.stride(-1) == 1
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    q_weight, k_weight, table = (x if x is None else x.contiguous() for x in (q_weight, k_weight, table))
    half = triton.next_power_of_2(dim // 2)
    rows = max(1, min(_ELEMENTS // (2 * half), triton.next_power_of_2(max(heads, kv_heads))))
    _qk_norm_rope_kernel[(tokens, triton.cdiv(heads, rows) + triton.cdiv(kv_heads, rows))](
        q, k, q_out, k_out, q_weight, k_weight, table,
        eps, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        q_out.stride(0), q_out.stride(1), k_out.stride(0), k_out.stride(1),
        HEADS=heads, KV_HEADS=kv_heads, ROWS=rows, DIM=dim, HALF=half,
        num_warps=_NUM_WARPS,
    )  # fmt: skip
    return q_out, k_out
