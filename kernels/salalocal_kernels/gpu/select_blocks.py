"""The top-k of InfLLM-V2 on a GPU: one program per query holds its row of scores in registers.

Scores are read once. Taken as integers in the order of floats, the k-th largest is found by halving the range of
integers, a count each time, until exactly k lie above; then prefix sums give every chosen block its place. So a
row costs its bytes and some 20 counts, whatever the scores are. A row is held in two powers of two, the second for
what the first leaves over.

A single long row would keep one multiprocessor busy and all others waiting: programs first pick the k best of each
span of it, then one program picks among those. Ties keep the order of the row, so the result is the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.target import INTERPRETED

# Scores per thread where a row is long; 32 warps hold a row of 32,768 so.
_PER_THREAD = 32
# Scores of one prefix sum, at most 2^15: two counts share 32 bits.
_CHUNK = 4096
# A single row longer than two spans is picked from span by span.
_SPAN = 2048
_SPAN_WARPS = 8


def warps(width: int) -> int:
    """Warps of a program for rows of `width` scores."""
    return max(2, min(32, width // (32 * _PER_THREAD)))


def parts(num_blocks: int) -> tuple[int, int]:
    """The two powers of two that hold a row, the second 0 where the first does."""
    width = max(64, triton.next_power_of_2(num_blocks))
    rest = num_blocks - width // 2
    if width <= _CHUNK or rest > width // 4:
        return width, 0
    return width // 2, max(64, triton.next_power_of_2(rest))


@triton.jit
def _rank(row, blocks, end, stride_sn, own, INIT: tl.constexpr, LOCAL: tl.constexpr):
    """Integers in the order of the scores, forced blocks above all and blocks that are not there below."""
    exists = (blocks >= 0) & (blocks < end)
    scores = tl.load(row + blocks.to(tl.int64) * stride_sn, mask=exists, other=-float("inf"))
    # Adding 0 turns -0 into 0, its equal. Only forced blocks rank above the largest finite score.
    bits = tl.minimum(scores + 0.0, 3.4028234663852886e38).to(tl.int32, bitcast=True)
    rank = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    forced = (blocks < INIT) | ((blocks >= own - LOCAL) & (blocks <= own))
    rank = tl.where(forced, 0x7FFFFFFF, rank)
    return tl.where(exists, rank, -0x7FFFFFFF)


@triton.jit
def _blocks(picks, at, count, FROM_PICKS: tl.constexpr):
    """The blocks at these places of the row: the places themselves, or what was picked before, -1 for nothing."""
    if FROM_PICKS:
        return tl.load(picks + at, mask=at < count, other=-1)
    return at


@triton.jit(do_not_specialize=["position"])
def _select_blocks_kernel(
    scores_ptr, picks_ptr, picked_ptr,
    num_blocks, count, position, span,
    stride_sh, stride_st, stride_sn, stride_kh, stride_ph, stride_pt, stride_ps,
    POSITION_IN_MEMORY: tl.constexpr, BLOCK: tl.constexpr, INIT: tl.constexpr, LOCAL: tl.constexpr, K: tl.constexpr,
    K_PADDED: tl.constexpr, WIDTH: tl.constexpr, TAIL: tl.constexpr, CHUNK: tl.constexpr, FROM_PICKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    own = ((first + token) // BLOCK).to(tl.int32)
    row = scores_ptr + kv_head * stride_sh + token * stride_st
    picks = picks_ptr + kv_head * stride_kh
    start_at = 0
    end = num_blocks
    if IS_SPLIT:
        start_at = part * span
        end = tl.minimum(start_at + span, num_blocks)
    blocks = _blocks(picks, start_at + tl.arange(0, WIDTH), count, FROM_PICKS)
    rank = _rank(row, blocks, end, stride_sn, own, INIT, LOCAL)
    there = end - start_at
    if FROM_PICKS:
        there = tl.sum((blocks >= 0).to(tl.int32), 0)
    if TAIL:
        tail = _rank(row, start_at + WIDTH + tl.arange(0, TAIL), end, stride_sn, own, INIT, LOCAL)
    taken = tl.minimum(K, there)
    # Counts of ranks >= low are at least `taken`, of ranks > high fewer. -0x7F800001 is the rank of -inf.
    low = tl.full([], -0x7F800001, tl.int32)
    high = tl.full([], 0x7FFFFFFF, tl.int32)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)
        found_here = tl.sum((rank >= middle).to(tl.int32), 0)
        if TAIL:
            found_here += tl.sum((tail >= middle).to(tl.int32), 0)
        low = tl.where(found_here >= taken, middle, low)
        high = tl.where(found_here > taken, high, tl.where(found_here == taken, middle, middle - 1))
    # The rows come from a cache once more, in chunks: beside a whole row no registers are left for a prefix sum.
    picked = picked_ptr + kv_head * stride_ph + token * stride_pt + part * stride_ps
    room = taken - tl.sum((rank > low).to(tl.int32), 0)
    if TAIL:
        room -= tl.sum((tail > low).to(tl.int32), 0)
    above_before = tl.full([], 0, tl.int32)
    equal_before = tl.full([], 0, tl.int32)
    found = tl.full([], 0, tl.int32)
    for start in range(0, WIDTH + TAIL, CHUNK):
        these = _blocks(picks, start_at + start + tl.arange(0, CHUNK), count, FROM_PICKS)
        chunk = _rank(row, these, end, stride_sn, own, INIT, LOCAL)
        above = chunk > low
        equal = chunk == low
        # Both counts in one prefix sum. Of equal scores those with the lower index are taken, as long as there is room.
        both = (above.to(tl.int32) << 16) + equal.to(tl.int32)
        before = tl.cumsum(both, 0) - both
        above_place = above_before + (before >> 16)
        equal_place = equal_before + (before & 0xFFFF)
        # Blocks after the own one take slots but are not read; they come last, so no place before them moves.
        chosen = (above | (equal & (equal_place < room))) & (these <= own) & (these >= 0) & (these < end)
        tl.store(picked + above_place + tl.minimum(equal_place, room), these, mask=chosen)
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
    spans = triton.cdiv(num_blocks, _SPAN)
    if tokens > 1 or spans <= 2:
        _launch(
            scores, scores, picked, num_blocks, num_blocks, 1, first_position, block_size, init_blocks, local_blocks
        )
        return picked
    best = torch.empty(kv_heads, spans, k, dtype=torch.int32, device=scores.device)
    _launch(scores, scores, best, _SPAN, num_blocks, spans, first_position, block_size, init_blocks, local_blocks)
    _launch(scores, best, picked, spans * k, num_blocks, 1, first_position, block_size, init_blocks, local_blocks)
    return picked


def _launch(
    scores: Tensor, picks: Tensor, picked: Tensor, span: int, num_blocks: int, spans: int, first_position: int | Tensor,
    block_size: int, init_blocks: int, local_blocks: int,
) -> None:  # fmt: skip
    """Picks from `spans` spans of every row, or from the blocks in `picks` where that is not `scores` itself."""
    kv_heads, tokens, _ = scores.shape
    k = picked.shape[-1]
    width, tail = parts(span)
    whole_row = 1 if INTERPRETED else warps(width)
    _select_blocks_kernel[(tokens, kv_heads, spans)](
        scores, picks, picked,
        num_blocks, span, first_position, span,
        scores.stride(0), scores.stride(1), scores.stride(2), picks.stride(0),
        picked.stride(0), 0 if spans > 1 else picked.stride(1), picked.stride(1) if spans > 1 else 0,
        POSITION_IN_MEMORY=isinstance(first_position, Tensor), BLOCK=block_size, INIT=init_blocks, LOCAL=local_blocks,
        K=k, K_PADDED=triton.next_power_of_2(k), WIDTH=width, TAIL=tail, CHUNK=min(width, _CHUNK),
        FROM_PICKS=picks is not scores, IS_SPLIT=spans > 1,
        num_warps=max(whole_row, _SPAN_WARPS) if tokens == 1 and not INTERPRETED else whole_row,
    )  # fmt: skip
