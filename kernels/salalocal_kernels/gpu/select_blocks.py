"""The top-k of InfLLM-V2 on a GPU: one program per query holds its row of scores in registers.

Scores are read once. Taken as integers in the order of floats, the k-th largest is found by halving the range of
integers, a count each time, until exactly k lie above; then prefix sums give every chosen block its place. So a
row costs its bytes and some 20 counts of WIDTH comparisons, whatever the scores are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu._chip import INTERPRETED

# Scores per thread where a row is long; 32 warps hold a row of 32,768 so.
_PER_THREAD = 32
# Scores of one prefix sum, at most 2^15: two counts share 32 bits.
_CHUNK = 4096


def warps(width: int) -> int:
    """Warps of a program for rows of `width` scores."""
    return max(2, min(32, width // (32 * _PER_THREAD)))


@triton.jit
def _rank(row, blocks, num_blocks, stride_sn, own, INIT: tl.constexpr, LOCAL: tl.constexpr):
    """Integers in the order of the scores, forced blocks above all and blocks that are not there below."""
    exists = blocks < num_blocks
    scores = tl.load(row + blocks.to(tl.int64) * stride_sn, mask=exists, other=-float("inf"))
    # Adding 0 turns -0 into 0, its equal. Only forced blocks rank above the largest finite score.
    bits = tl.minimum(scores + 0.0, 3.4028234663852886e38).to(tl.int32, bitcast=True)
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    forced = (blocks < INIT) | ((blocks >= own - LOCAL) & (blocks <= own))
    rank = tl.where(forced, 0x7FFFFFFF, rank)
    return tl.where(exists, rank, -0x7FFFFFFF)


@triton.jit
def _select_blocks_kernel(
    scores_ptr, picked_ptr,
    num_blocks, position,
    stride_sh, stride_st, stride_sn, stride_ph, stride_pt,
    POSITION_IN_MEMORY: tl.constexpr, BLOCK: tl.constexpr, INIT: tl.constexpr, LOCAL: tl.constexpr, K: tl.constexpr,
    K_PADDED: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    own = ((first + token) // BLOCK).to(tl.int32)
    row = scores_ptr + kv_head * stride_sh + token * stride_st
    rank = _rank(row, tl.arange(0, WIDTH), num_blocks, stride_sn, own, INIT, LOCAL)
    taken = tl.minimum(K, num_blocks)
    # Counts of ranks >= low are at least `taken`, of ranks > high fewer. -0x7F800001 is the rank of -inf.
    low = tl.full([], -0x7F800001, tl.int32)
    high = tl.full([], 0x7FFFFFFF, tl.int32)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)
        count = tl.sum((rank >= middle).to(tl.int32), 0)
        low = tl.where(count >= taken, middle, low)
        high = tl.where(count > taken, high, tl.where(count == taken, middle, middle - 1))
    # The rows come from a cache once more, in chunks: beside a whole row no registers are left for a prefix sum.
    picked = picked_ptr + kv_head * stride_ph + token * stride_pt
    room = taken - tl.sum((rank > low).to(tl.int32), 0)
    above_before = tl.full([], 0, tl.int32)
    equal_before = tl.full([], 0, tl.int32)
    found = tl.full([], 0, tl.int32)
    for start in range(0, WIDTH, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        chunk = _rank(row, blocks, num_blocks, stride_sn, own, INIT, LOCAL)
        above = chunk > low
        equal = chunk == low
        # Both counts in one prefix sum. Of equal scores those with the lower index are taken, as long as there is room.
        both = (above.to(tl.int32) << 16) + equal.to(tl.int32)
        before = tl.cumsum(both, 0) - both
        above_place = above_before + (before >> 16)
        equal_place = equal_before + (before & 0xFFFF)
        # Blocks after the own one take slots but are not read; they come last, so no place before them moves.
        chosen = (above | (equal & (equal_place < room))) & (blocks <= own) & (blocks < num_blocks)
        tl.store(picked + above_place + tl.minimum(equal_place, room), blocks, mask=chosen)
        counts = tl.sum(both, 0)
        above_before += counts >> 16
        equal_before += counts & 0xFFFF
        found += tl.sum(chosen.to(tl.int32), 0)
    slots = tl.arange(0, K_PADDED)
    tl.store(picked + slots, tl.full([K_PADDED], -1, tl.int32), mask=(slots >= found) & (slots < K))


def select_blocks(
    scores: Tensor, first_position: int | Tensor, block_size: int, init_blocks: int, local_blocks: int, k: int
) -> Tensor:
    """The op of `ref/select_blocks.py`, same arguments and result, for float32 scores.

    first_position may be an int64 tensor of one element on the device, for a captured graph; scores may then reach
    beyond the query's own block.
    """
    kv_heads, tokens, num_blocks = scores.shape
    assert scores.dtype == torch.float32
    picked = torch.empty(kv_heads, tokens, k, dtype=torch.int32, device=scores.device)
    if picked.numel() == 0:
        return picked
    width = triton.next_power_of_2(max(num_blocks, 64))
    _select_blocks_kernel[(tokens, kv_heads)](
        scores, picked,
        num_blocks, first_position,
        scores.stride(0), scores.stride(1), scores.stride(2), picked.stride(0), picked.stride(1),
        POSITION_IN_MEMORY=isinstance(first_position, Tensor), BLOCK=block_size, INIT=init_blocks, LOCAL=local_blocks,
        K=k, K_PADDED=triton.next_power_of_2(k), WIDTH=width, CHUNK=min(width, _CHUNK),
        num_warps=1 if INTERPRETED else warps(width),
    )  # fmt: skip
    return picked
