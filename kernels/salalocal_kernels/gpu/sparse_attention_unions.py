"""Attention over selected blocks on a GPU: a program takes a few neighbouring queries through their blocks' union.

Bound by bytes. A block is 32 KiB of K and V and 16 heads of one query make 2.1 MFLOP of it: at 200 TFLOP/s a query on
its own would read 12 TB/s, twice what the L2 cache of an H100 delivers. Four neighbours that share 64 % of their free
picks and the whole window read 163 blocks instead of 384, and multiply 1.7 times what is useful; eight would read a
quarter less for each query and multiply 2.6 times it. Where the tensor cores are the narrower path (consumer cards),
two are enough.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.narrow import LEAST_CHANNELS, widened
from salalocal_kernels.gpu.target import INTERPRETED, capability
from salalocal_kernels.gpu.union_blocks import union_blocks

# tl.dot wants at least so many rows; a smaller group is padded with rows that are not stored.
_MIN_ROWS = 16


def tiling(chip: int, group_padded: int, element_bytes: int) -> tuple[int, int, int]:
    """Queries, warps and stages of a program. `chip`: compute capability."""
    if element_bytes > 2:
        return max(1, _MIN_ROWS // group_padded), 4, 1
    if chip == 90:
        # 64 rows are the least its widest product takes; with 112 KiB two programs share a multiprocessor.
        return max(1, min(8, 64 // group_padded)), 4, 3
    return max(1, min(4, 32 // group_padded)), 4, 2


@triton.jit(do_not_specialize=["tokens", "tiles", "position"])
def _sparse_attention_kernel(
    q_ptr, pages_ptr, entries_ptr, counts_ptr, out_ptr, lse_ptr,
    tokens, tiles, position, scale_log2,
    stride_qt, stride_qh, stride_pp, stride_ph, stride_pv, stride_pb, stride_eh, stride_et, stride_ot, stride_oh,
    stride_lt,
    HAS_LSE: tl.constexpr, IS_CONTINUED: tl.constexpr, POSITION_IN_MEMORY: tl.constexpr, QUERIES: tl.constexpr,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr,
    FIXED_STEPS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    rows = tl.arange(0, QUERIES * GROUP_PADDED)
    dims = tl.arange(0, DIM)
    offsets = tl.arange(0, BLOCK)
    query = rows // GROUP_PADDED
    token = tile * QUERIES + query
    head = kv_head * GROUP + rows % GROUP_PADDED
    is_real = (token < tokens) & (rows % GROUP_PADDED < GROUP)
    entries = entries_ptr + kv_head * stride_eh + tile * stride_et
    count = tl.load(counts_ptr + kv_head * tiles + tile)
    if IS_CONTINUED:
        # Where nothing is read, nothing is moved: what is there stays.
        is_real = is_real & (count > 0)
    q_places = q_ptr + token[:, None] * stride_qt + head[:, None] * stride_qh + dims[None, :]
    q = tl.load(q_places, mask=is_real[:, None], other=0.0)
    # Nothing after the tile's last query is read: behind the last token a page may hold anything, also NaN, which no
    # weight of 0 undoes.
    last = first + tl.minimum(tile * QUERIES + QUERIES, tokens) - 1
    peak = tl.full([QUERIES * GROUP_PADDED], -float("inf"), WIDE)
    total = tl.zeros([QUERIES * GROUP_PADDED], WIDE)
    summed = tl.zeros([QUERIES * GROUP_PADDED, DIM], WIDE)
    # A step's entry is read one step ahead, so that its keys can be on their way early.
    entry = tl.load(entries, mask=count > 0, other=0)
    for step in range(FIXED_STEPS if FIXED_STEPS > 0 else count):
        base = pages_ptr + (entry >> 32) * stride_pp + kv_head * stride_ph
        block_first = ((entry >> 8) & 0xFFFFFF) * BLOCK
        readers = tl.where(step < count, (entry & 0xFF).to(tl.int32), 0)
        entry = tl.load(entries + tl.minimum(step + 1, count - 1), mask=count > 0, other=0)
        keys = tl.load(base + offsets[None, :] * stride_pb + dims[:, None])
        logits = tl.dot(q, keys, input_precision="ieee", out_dtype=WIDE)
        # Offsets in the block that a row sees: none where its query has not picked the block.
        limit = tl.where((readers >> query) & 1 != 0, tl.minimum(first + token - block_first, BLOCK), -1).to(tl.int32)
        logits = tl.where(offsets[None, :] <= limit[:, None], logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, 1) * scale_log2)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(logits * scale_log2 - shift[:, None])
        fade = tl.exp2(peak - shift)
        is_there = offsets <= last - block_first
        places = base + stride_pv + offsets[:, None] * stride_pb + dims[None, :]
        values = tl.load(places, mask=is_there[:, None], other=0.0)
        total = total * fade + tl.sum(weights, 1)
        summed = summed * fade[:, None]
        summed = tl.dot(weights.to(values.dtype), values, summed, input_precision="ieee", out_dtype=WIDE)
        peak = higher
    out_places = out_ptr + token[:, None] * stride_ot + head[:, None] * stride_oh + dims[None, :]
    if IS_CONTINUED:
        # What was read before, under a weight of exp(lse). At the end, when the loop's registers are free.
        earlier = tl.load(lse_ptr + token * stride_lt + head, mask=is_real, other=-float("inf")).to(WIDE)
        earlier *= 1.4426950408889634
        higher = tl.maximum(peak, earlier)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        fade, kept = tl.exp2(peak - shift), tl.exp2(earlier - shift)
        total = total * fade + kept
        before = tl.load(out_places, mask=is_real[:, None], other=0.0).to(WIDE)
        summed = summed * fade[:, None] + before * kept[:, None]
        peak = higher
    if HAS_LSE:
        lse = (tl.where(total > 0.0, peak, 0.0) + tl.log2(total)) * 0.6931471805599453
        tl.store(lse_ptr + token * stride_lt + head, lse.to(lse_ptr.dtype.element_ty), mask=is_real)
        # Of a query that reads nothing of the piece there is nothing, not 0 / 0.
        nothing = total == 0.0
        total = tl.where(nothing, 1.0, total)
        summed = tl.where(nothing[:, None], 0.0, summed)
    tl.store(out_places, (summed / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_real[:, None])


def sparse_attention_prefill(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    blocks: Tensor,
    first_position: int | Tensor,
    scale: float,
    lse: Tensor | None = None,
    out: Tensor | None = None,
    span: tuple[int, int] | None = None,
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result; q and pages of one dtype, the last dimension a
    power of two, the block size one from 16 on, the last dimension adjacent in memory.

    first_position may be an int64 tensor of one element on the device, for a captured graph.
    """
    if q.shape[-1] < LEAST_CHANNELS:
        earlier = None if out is None else widened(out)
        wide = sparse_attention_prefill(
            widened(q), widened(pages), page_table, blocks, first_position, scale, lse, earlier, span
        )[..., : q.shape[-1]]
        return wide if out is None else out.copy_(wide)
    tokens, heads, dim = q.shape
    kv_heads, block_size = pages.shape[1], pages.shape[3]
    group = heads // kv_heads
    is_continued = out is not None
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype if lse is None else lse.dtype, device=q.device)
    assert lse is None or lse.stride(-1) == 1
    assert lse is not None or not (is_continued or span)
    assert out.stride(-1) == 1
    assert q.stride(-1) == pages.stride(-1) == 1
    assert q.dtype == pages.dtype
    if tokens == 0:
        return out
    padded = triton.next_power_of_2(group)
    queries, warps, stages = tiling(capability(q.device), padded, q.element_size())
    # Rows of queries that are not there make up what a short group lacks.
    queries = max(_MIN_ROWS // padded, min(queries, triton.next_power_of_2(tokens)))
    if queries > 8:
        queries, padded = 8, max(padded, _MIN_ROWS // 8)
    entries, counts = union_blocks(blocks, page_table, queries, span)
    _sparse_attention_kernel[(counts.shape[1], kv_heads)](
        q, pages, entries, counts, out, out if lse is None else lse,
        tokens, counts.shape[1], first_position, scale * math.log2(math.e),
        q.stride(0), q.stride(1), pages.stride(0), pages.stride(1), pages.stride(2), pages.stride(3),
        entries.stride(0), entries.stride(1), out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0),
        HAS_LSE=lse is not None, IS_CONTINUED=is_continued, POSITION_IN_MEMORY=isinstance(first_position, Tensor),
        QUERIES=queries, GROUP=group, GROUP_PADDED=padded, BLOCK=block_size, DIM=dim,
        WIDE=tl.float64 if q.dtype == torch.float64 else tl.float32,
        FIXED_STEPS=entries.shape[2] if INTERPRETED else 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
