"""Attention over selected blocks on a GPU: one program for a query and kv head, which goes through its blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# tl.dot wants at least so many rows; a smaller group is padded with rows that are not stored.
_MIN_ROWS = 16


@triton.jit
def _sparse_attention_kernel(
    q_ptr, pages_ptr, table_ptr, blocks_ptr, out_ptr,
    first_position, scale,
    stride_qt, stride_qh, stride_pp, stride_ph, stride_pv, stride_pb, stride_bh, stride_bt, stride_ot, stride_oh,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, PICKS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    # Wide, because its product with a stride passes 2^31 elements where a store of many heads holds a million tokens.
    kv_head = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    offsets = tl.arange(0, BLOCK)
    heads = kv_head * GROUP + rows
    is_head = rows < GROUP
    precision: tl.constexpr = "ieee"
    q = tl.load(
        q_ptr + token * stride_qt + heads[:, None] * stride_qh + dims[None, :], mask=is_head[:, None], other=0.0
    )
    position = first_position + token
    peak = tl.full([ROWS], -float("inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    summed = tl.zeros([ROWS, DIM], WIDE)
    for pick in range(PICKS):
        block = tl.load(blocks_ptr + kv_head * stride_bh + token * stride_bt + pick)
        if block >= 0:
            page = tl.load(table_ptr + block).to(tl.int64)
            base = pages_ptr + page * stride_pp + kv_head * stride_ph
            keys = tl.load(base + offsets[:, None] * stride_pb + dims[None, :])
            logits = tl.dot(q, tl.trans(keys), input_precision=precision, out_dtype=WIDE) * scale
            visible = block.to(tl.int64) * BLOCK + offsets <= position
            logits = tl.where(visible[None, :], logits, -float("inf"))
            # The query's own token is visible, and blocks come in rising order: the first one read has a visible token.
            higher = tl.maximum(peak, tl.max(logits, 1))
            weights = tl.exp(logits - higher[:, None])
            fade = tl.exp(peak - higher)
            # What lies behind the last token of a page may be anything, also NaN, which no weight of 0 undoes.
            places = base + stride_pv + offsets[:, None] * stride_pb + dims[None, :]
            values = tl.load(places, mask=visible[:, None], other=0.0)
            total = total * fade + tl.sum(weights, 1)
            read = tl.dot(weights.to(values.dtype), values, input_precision=precision, out_dtype=WIDE)
            summed = summed * fade[:, None] + read
            peak = higher
    out = summed / total[:, None]
    tl.store(
        out_ptr + token * stride_ot + heads[:, None] * stride_oh + dims[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=is_head[:, None],
    )


def sparse_attention_prefill(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, first_position: int, scale: float
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result; q and pages of one dtype, the last dimension a power of
    two and adjacent in memory."""
    tokens, heads, dim = q.shape
    kv_heads, block_size = pages.shape[1], pages.shape[3]
    group = heads // kv_heads
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    assert q.stride(-1) == pages.stride(-1) == blocks.stride(-1) == 1
    _sparse_attention_kernel[(tokens, kv_heads)](
        q, pages, page_table, blocks, out,
        first_position, scale,
        q.stride(0), q.stride(1), pages.stride(0), pages.stride(1), pages.stride(2), pages.stride(3),
        blocks.stride(0), blocks.stride(1), out.stride(0), out.stride(1),
        GROUP=group, ROWS=max(_MIN_ROWS, triton.next_power_of_2(group)), BLOCK=block_size, DIM=dim,
        PICKS=blocks.shape[-1],
        WIDE=tl.float64 if q.dtype == torch.float64 else tl.float32,
        num_warps=2, num_stages=3,
    )  # fmt: skip
    return out
