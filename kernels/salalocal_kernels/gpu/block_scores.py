"""Stage 1 of InfLLM-V2 on a GPU: block maxima of summed exponentials, with no query x key matrix in memory.

Two kernels: the log-sum-exp of every query head over the coarse keys, then the scores from the fine ones.

The second one is bound by the tensor cores and the special-function units together: one exponential per 2 * D FLOP
takes an H100 as long as the product that feeds it (16 exponentials and 4,096 FLOP per clock at D = 128). So nothing
else may cost much. Keys are the rows of its product and (head, query) its columns, heads outermost: in the layout
of the tensor cores' result one thread then holds all heads of its queries and adds them up without a shuffle. Every row
walks along a run of neighbouring keys, so the maximum over the keys of a block is elementwise too, and a key that two
blocks share is carried over; one key per run is scored twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.narrow import LEAST_CHANNELS, widened
from salalocal_kernels.gpu.target import INTERPRETED, capability, multiprocessors


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program.

    Attributes:
        columns: query heads of a fine program, rows: keys of one of its products.
        coarse_rows: query heads of a coarse program, coarse_keys: keys of one of its products.
    """

    columns: int
    rows: int
    warps: int
    stages: int
    coarse_rows: int
    coarse_keys: int
    coarse_warps: int
    coarse_stages: int


def tiles(chip: int, is_wide: bool) -> Tiles:
    """`chip`: compute capability; `is_wide`: 4-byte inputs, which no tensor core multiplies exactly."""
    if is_wide:
        return Tiles(64, 32, 4, 2, 32, 32, 4, 2)
    if chip == 90:
        # 66 KiB and 168 registers: three programs on a multiprocessor, so that some multiply while others take
        # exponentials. 256 columns halve what is read from the L2 cache (2.4 TB/s at 309 TFLOP/s), but leave room for
        # two programs and spill 44 bytes.
        return Tiles(128, 64, 4, 2, 128, 64, 4, 3)
    return Tiles(128, 64, 8, 3, 64, 64, 4, 3)


@triton.jit(do_not_specialize=["tokens", "coarse_count", "position", "steps_per_split"])
def _coarse_lse_kernel(
    q_ptr, k2_ptr, lse_ptr,
    tokens, coarse_count, position, scale_log2, steps_per_split,
    stride_qt, stride_qh, stride_kh, stride_kn, stride_ls, stride_lt,
    POSITION_IN_MEMORY: tl.constexpr, SPACING: tl.constexpr, QUERIES: tl.constexpr, GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, FIXED_STEPS: tl.constexpr,
):  # fmt: skip
    """log2 of the sum of 2^(logit * log2 e) over one split of the visible coarse keys; -inf where there is none."""
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    rows = tl.arange(0, QUERIES * GROUP_PADDED)
    dims = tl.arange(0, DIM)
    offsets = tl.arange(0, KEYS)
    token = tile * QUERIES + rows % QUERIES
    head = kv_head * GROUP + rows // QUERIES
    is_real = (token < tokens) & (rows // QUERIES < GROUP)
    places = q_ptr + token[:, None] * stride_qt + head[:, None] * stride_qh + dims[None, :]
    q = tl.load(places, mask=is_real[:, None], other=0.0)
    # Window j of 2 * SPACING tokens has ended at or before a position from j = (position + 1) / SPACING - 2 down.
    visible = ((first + token + 1) // SPACING - 1).to(tl.int32)
    last = tl.minimum(first + tile * QUERIES + QUERIES, first + tokens)
    begin = split * steps_per_split
    needed = tl.cdiv(tl.minimum(last // SPACING - 1, coarse_count), KEYS).to(tl.int32)
    end = tl.minimum(begin + steps_per_split, needed)
    peak = tl.full([QUERIES * GROUP_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES * GROUP_PADDED], tl.float32)
    base = k2_ptr + kv_head * stride_kh
    for step in range(FIXED_STEPS if FIXED_STEPS > 0 else end - begin):
        key = (begin + step) * KEYS + offsets
        exists = key < coarse_count
        k = tl.load(base + key[None, :].to(tl.int64) * stride_kn + dims[:, None], mask=exists[None, :], other=0.0)
        logits = tl.dot(q, k, input_precision="ieee") * scale_log2
        logits = tl.where(exists[None, :] & (key[None, :] < visible[:, None]), logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp2(peak - shift) + tl.sum(tl.exp2(logits - shift[:, None]), 1)
        peak = higher
    tl.store(lse_ptr + split * stride_ls + token * stride_lt + head, peak + tl.log2(total), mask=is_real)


@triton.jit(do_not_specialize=["tokens", "tiles_of_queries", "segments", "fine_count", "num_blocks", "position"])
def _block_scores_kernel(
    q_ptr, k1_ptr, lse_ptr, out_ptr,
    tokens, tiles_of_queries, segments, fine_count, num_blocks, position, scale_log2,
    stride_qt, stride_qh, stride_kh, stride_kn, stride_ls, stride_lt, stride_oh, stride_ot,
    POSITION_IN_MEMORY: tl.constexpr, SPACING: tl.constexpr, PER_BLOCK: tl.constexpr, RUN: tl.constexpr,
    ROWS: tl.constexpr, QUERIES: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """ROWS * RUN blocks for QUERIES queries; row r of every product scores the blocks r * RUN ... (r + 1) * RUN - 1."""
    # Tiles of queries are innermost: what runs side by side reads the same keys.
    program = tl.program_id(0).to(tl.int64)
    tile = program % tiles_of_queries
    segment = (program // tiles_of_queries) % segments
    kv_head = program // tiles_of_queries // segments
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    queries = tl.arange(0, QUERIES)
    rows = tl.arange(0, ROWS)
    block = (segment * ROWS * RUN).to(tl.int32) + rows * RUN
    visible = ((first + tile * QUERIES + queries + 1) // SPACING - 1).to(tl.int32)
    most_visible = ((first + tl.minimum(tile * QUERIES + QUERIES, tokens)) // SPACING - 1).to(tl.int32)
    places = out_ptr + kv_head * stride_oh + (tile * QUERIES + queries)[None, :] * stride_ot + block[:, None]
    is_query = (tile * QUERIES + queries < tokens)[None, :]
    if segment * ROWS * RUN * PER_BLOCK - 1 >= most_visible:
        # All of it is the future: nothing to multiply.
        for index in range(RUN):
            exists = (block + index) * PER_BLOCK - (block + index > 0) < fine_count
            score = tl.where(exists, 0.0, -float("inf"))[:, None] + tl.zeros([ROWS, QUERIES], tl.float32)
            tl.store(places + index, score, mask=is_query & (block + index < num_blocks)[:, None])
    else:
        columns = tl.arange(0, GROUP_PADDED * QUERIES)
        dims = tl.arange(0, DIM)
        token = tile * QUERIES + columns % QUERIES
        head = kv_head * GROUP + columns // QUERIES
        is_real = (token < tokens) & (columns // QUERIES < GROUP)
        q_places = q_ptr + token[:, None] * stride_qt + head[:, None] * stride_qh + dims[None, :]
        q = tl.load(q_places, mask=is_real[:, None], other=0.0)
        peak = tl.full([GROUP_PADDED * QUERIES], -float("inf"), tl.float32)
        for split in tl.static_range(SPLITS):
            part = tl.load(lse_ptr + split * stride_ls + token * stride_lt + head, mask=is_real, other=-float("inf"))
            higher = tl.maximum(peak, part)
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            peak = tl.where(
                higher == -float("inf"), higher, shift + tl.log2(tl.exp2(peak - shift) + tl.exp2(part - shift))
            )
        # Without a coarse key, and in columns that stand for no head, every term is 0.
        lse = tl.where(peak == -float("inf"), float("inf"), peak)
        best = tl.full([ROWS, QUERIES], -float("inf"), tl.float32)
        base = k1_ptr + kv_head * stride_kh - stride_kn
        # The launcher sees to it that 32 bits hold these; 64-bit pointers would take twice the registers.
        offsets = (block * PER_BLOCK * stride_kn)[:, None] + dims[None, :]
        for step in range(RUN * PER_BLOCK + 1):
            key = block * PER_BLOCK + (step - 1)
            exists = (key >= 0) & (key < fine_count)
            k = tl.load(base + step * stride_kn + offsets, mask=exists[:, None], other=0.0)
            logits = tl.dot(k, tl.trans(q), input_precision="ieee")
            terms = tl.exp2(logits * scale_log2 - lse[None, :])
            p = tl.sum(tl.reshape(terms, [ROWS, GROUP_PADDED, QUERIES]), 1)
            p = tl.where(key[:, None] < visible[None, :], p, 0.0)
            p = tl.where(exists[:, None], p, -float("inf"))
            best = tl.maximum(best, p)
            if step % PER_BLOCK == 0:
                done = block + (step // PER_BLOCK - 1)
                stored = is_query & ((done < num_blocks) & (step > 0))[:, None]
                tl.store(places + (step // PER_BLOCK - 1), best, mask=stored)
                # The block's last key overlaps the next one.
                best = p


def _room(kv_heads: int, tokens: int, width: int, device: torch.device) -> Tensor:
    """float32 [kv_heads, tokens, width] in memory of one of few sizes: a little larger with every chunk, scores would
    never fit where those of the last one were."""
    count = tokens * width
    scores = torch.empty(kv_heads * triton.next_power_of_2(count), dtype=torch.float32, device=device)
    return scores[: kv_heads * count].view(kv_heads, tokens, width)


def block_scores(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    first_position: int | Tensor,
    scale: float,
    kernel_stride: int,
    block_size: int,
    num_blocks: int,
) -> Tensor:
    """The op of `ref/block_scores.py`, same arguments and result, but float64. The last dimension of q, k1 and k2 is a
    power of two and adjacent in memory; the result's rows lie 16 elements apart or a multiple.

    first_position may be an int64 tensor of one element on the device, for a captured graph. k1, k2 and num_blocks
    may then reach beyond what is visible; such blocks score 0.
    """
    if q.shape[-1] < LEAST_CHANNELS:
        q, k1, k2 = widened(q), widened(k1), widened(k2)
    tokens, heads, dim = q.shape
    kv_heads, fine_count, _ = k1.shape
    coarse_count = k2.shape[1]
    assert q.stride(-1) == k1.stride(-1) == k2.stride(-1) == 1
    assert q.dtype == k1.dtype == k2.dtype
    assert q.dtype != torch.float64
    assert num_blocks * (block_size // kernel_stride) * k1.stride(1) < 1 << 31
    out = _room(kv_heads, tokens, -(-num_blocks // 16) * 16, q.device)
    if tokens == 0 or num_blocks == 0:
        return out[..., :num_blocks]
    group = heads // kv_heads
    padded = triton.next_power_of_2(group)
    size = tiles(capability(q.device), q.element_size() == 4)
    wanted = triton.next_power_of_2(tokens)
    programs = 4 * multiprocessors(q.device)
    in_memory = isinstance(first_position, Tensor)
    scale_log2 = scale * math.log2(math.e)

    queries = max(1, 16 // padded, min(size.coarse_rows // padded, wanted))
    coarse_tiles = triton.cdiv(tokens, queries)
    steps = triton.cdiv(coarse_count, size.coarse_keys)
    splits = max(1, min(16, steps, programs // (coarse_tiles * kv_heads)))
    splits = 1 << (splits.bit_length() - 1)
    lse = torch.empty(splits, tokens, heads, dtype=torch.float32, device=q.device)
    per_split = triton.cdiv(steps, splits)
    _coarse_lse_kernel[(coarse_tiles, kv_heads, splits)](
        q, k2, lse,
        tokens, coarse_count, first_position, scale_log2, per_split,
        q.stride(0), q.stride(1), k2.stride(0), k2.stride(1), lse.stride(0), lse.stride(1),
        POSITION_IN_MEMORY=in_memory, SPACING=4 * kernel_stride, QUERIES=queries, GROUP=group, GROUP_PADDED=padded,
        KEYS=size.coarse_keys, DIM=dim, FIXED_STEPS=max(1, per_split) if INTERPRETED else 0,
        num_warps=size.coarse_warps, num_stages=size.coarse_stages,
    )  # fmt: skip

    queries = max(1, 16 // padded, min(size.columns // padded, wanted))
    query_tiles = triton.cdiv(tokens, queries)
    # Long runs score few keys twice; short ones make enough programs, and skip more of the future.
    run = 16
    while run > 2 and (
        query_tiles * kv_heads * triton.cdiv(num_blocks, size.rows * run) < programs or num_blocks < 8 * size.rows * run
    ):
        run //= 2
    segments = triton.cdiv(num_blocks, size.rows * run)
    _block_scores_kernel[(query_tiles * segments * kv_heads,)](
        q, k1, lse, out,
        tokens, query_tiles, segments, fine_count, num_blocks, first_position, scale_log2,
        q.stride(0), q.stride(1), k1.stride(0), k1.stride(1), lse.stride(0), lse.stride(1),
        out.stride(0), out.stride(1),
        POSITION_IN_MEMORY=in_memory, SPACING=kernel_stride, PER_BLOCK=block_size // kernel_stride, RUN=run,
        ROWS=size.rows, QUERIES=queries, GROUP=group, GROUP_PADDED=padded, DIM=dim, SPLITS=splits,
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    return out[..., :num_blocks]
