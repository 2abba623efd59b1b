"""What the queries of a tile read together: the union of their blocks, with who reads which.

A few microseconds beside the attention that follows: one sort of QUERIES * K numbers per tile, in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.target import INTERPRETED

# What an entry has room for.
_MOST_BLOCKS = 1 << 24


@triton.jit(do_not_specialize=["tokens", "tiles", "low", "stop"])
def _union_blocks_kernel(
    blocks_ptr, table_ptr, entries_ptr, counts_ptr,
    tokens, tiles, low, stop,
    stride_bh, stride_bt, stride_eh, stride_et,
    K: tl.constexpr, K_PADDED: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    index = tl.arange(0, QUERIES * K_PADDED)
    pick = index % K_PADDED
    token = tile * QUERIES + index // K_PADDED
    places = blocks_ptr + kv_head * stride_bh + token * stride_bt + pick
    block = tl.load(places, mask=(token < tokens) & (pick < K), other=-1)
    # Sorted by block, then by query; what is no block, or none of the piece, comes last.
    is_read = (block >= low) & (block < stop)
    order = tl.where(is_read, block * QUERIES + index // K_PADDED, 0x7FFFFFFF)
    order = tl.sort(order)
    is_block = order != 0x7FFFFFFF
    block = order // QUERIES
    readers = tl.zeros([QUERIES * K_PADDED], tl.int32)
    for distance in tl.static_range(QUERIES):
        other = tl.gather(order, tl.minimum(index + distance, QUERIES * K_PADDED - 1), 0)
        is_same = (other // QUERIES == block) & (index + distance < QUERIES * K_PADDED)
        readers |= tl.where(is_same, 1 << (other % QUERIES), 0)
    previous = tl.gather(order, tl.maximum(index - 1, 0), 0) // QUERIES
    is_first = is_block & ((index == 0) | (previous != block))
    place = tl.cumsum(is_first.to(tl.int32), 0) - 1
    page = tl.load(table_ptr + block, mask=is_first, other=0).to(tl.int64)
    entry = (page << 32) | (block.to(tl.int64) << 8) | readers
    tl.store(entries_ptr + kv_head * stride_eh + tile * stride_et + place, entry, mask=is_first)
    tl.store(counts_ptr + kv_head * tiles + tile, tl.sum(is_first.to(tl.int32), 0))


def union_blocks(
    blocks: Tensor, page_table: Tensor, queries: int, span: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Unites the blocks of every `queries` neighbouring queries.

    Args:
        blocks: [Hkv, T, K] int32, -1 padded, no block twice in a row, below 2^24; picks of a query adjacent.
        page_table: [N] integers, the page of each block, below 2^31.
        queries: queries per tile, a power of two up to 8.
        span: first and last block (excluded) of those that are united; None for all.

    Returns:
        entries: int64 [Hkv, ceil(T / queries), queries * K]; each holds page << 32 | block << 8 | readers, where bit r
            of readers says that query r of the tile reads the block; ascending by block; the rest is not written.
        counts: int32 [Hkv, ceil(T / queries)], entries of each tile.
    """
    kv_heads, tokens, k = blocks.shape
    tiles = triton.cdiv(tokens, queries)
    assert blocks.stride(-1) == page_table.stride(0) == 1
    assert queries <= 8
    low, stop = (0, _MOST_BLOCKS) if span is None else span
    assert 0 <= low <= stop <= _MOST_BLOCKS
    entries = torch.empty(kv_heads, tiles, queries * k, dtype=torch.int64, device=blocks.device)
    counts = torch.empty(kv_heads, tiles, dtype=torch.int32, device=blocks.device)
    if tokens:
        _union_blocks_kernel[(tiles, kv_heads)](
            blocks, page_table, entries, counts,
            tokens, tiles, low, stop,
            blocks.stride(0), blocks.stride(1), entries.stride(0), entries.stride(1),
            K=k, K_PADDED=triton.next_power_of_2(k), QUERIES=queries,
            num_warps=1 if INTERPRETED else 4,
        )  # fmt: skip
    return entries, counts
