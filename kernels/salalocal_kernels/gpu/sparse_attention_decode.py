"""One token's attention over its selected blocks on a GPU: blocks split among programs, then combined.

Bound by latency: 96 blocks of 32 KiB for each of two kv heads are 6.3 MB, 2.1 us of an H100's memory, while block,
page and keys have to be read one after the other. So every program takes few blocks and asks for all their keys and
values at once, without a loop; on 132 multiprocessors two blocks each make 96 programs and one wave.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait
from salalocal_kernels.gpu.narrow import LEAST_CHANNELS, widened
from salalocal_kernels.gpu.target import INTERPRETED

# tl.dot wants at least so many rows.
_MIN_ROWS = 16
_BLOCKS_PER_SPLIT = 2
# Splits that are added up at once.
_SPLITS_AT_ONCE = 32


@triton.jit
def _attend_split_kernel(
    q_ptr, pages_ptr, table_ptr, blocks_ptr, part_ptr, lse_ptr,
    length, scale_log2, slots,
    stride_qh, stride_pp, stride_ph, stride_pv, stride_pb, stride_th, stride_bh, stride_bk, stride_ah, stride_as,
    LENGTH_IN_MEMORY: tl.constexpr, PICKS: tl.constexpr, PER_SPLIT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Writes the split's own softmax output [GROUP, DIM], and log2 of each block's sum of weights per head."""
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    split = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    end = (tl.load(length) if LENGTH_IN_MEMORY else length) + tl.zeros([], tl.int64)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    tokens = tl.arange(0, PER_SPLIT * BLOCK)
    is_head = rows < GROUP
    pick = split * PER_SPLIT + tokens // BLOCK
    block = tl.load(blocks_ptr + kv_head * stride_bh + pick * stride_bk, mask=pick < PICKS, other=-1)
    position = block.to(tl.int64) * BLOCK + tokens % BLOCK
    # Behind the last token a page may hold anything, also NaN.
    visible = (block >= 0) & (position < end)
    page = tl.load(table_ptr + kv_head * stride_th + block, mask=visible, other=0).to(tl.int64)
    places = pages_ptr + page * stride_pp + kv_head * stride_ph + (tokens % BLOCK) * stride_pb
    keys = tl.load(places[:, None] + dims[None, :], mask=visible[:, None], other=0.0)
    values = tl.load(places[:, None] + stride_pv + dims[None, :], mask=visible[:, None], other=0.0)
    head = kv_head * GROUP + rows
    q = tl.load(q_ptr + head[:, None] * stride_qh + dims[None, :], mask=is_head[:, None], other=0.0)
    logits = tl.dot(q, tl.trans(keys), input_precision="ieee", out_dtype=WIDE) * scale_log2
    logits = tl.where(visible[None, :], logits, -float("inf"))
    peak = tl.max(logits, 1)
    shift = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp2(logits - shift[:, None])
    of_blocks = tl.sum(tl.reshape(weights, [ROWS, PER_SPLIT, BLOCK]), 2)
    total = tl.sum(weights, 1)
    read = tl.dot(weights.to(values.dtype), values, input_precision="ieee", out_dtype=WIDE)
    # A split without a token has read 0 and weighs 2^-inf.
    read = read / tl.where(total > 0.0, total, 1.0)[:, None]
    part = part_ptr + kv_head * stride_ah + split.to(tl.int64) * stride_as
    tl.store(part + rows[:, None] * DIM + dims[None, :], read, mask=is_head[:, None])
    slot = split * PER_SPLIT + tl.arange(0, PER_SPLIT)
    lse = shift[:, None] + tl.log2(of_blocks)
    tl.store(lse_ptr + head[:, None] * slots + slot[None, :], lse, mask=is_head[:, None])


@triton.jit
def _total_of_head(lse, slots, SLOTS: tl.constexpr, AT_ONCE: tl.constexpr, WIDE: tl.constexpr):
    """log2 of the sum of 2^lse[slot]; the query's own token is always visible, so it is finite."""
    peak = tl.full([], -float("inf"), WIDE)
    for start in range(0, SLOTS, AT_ONCE):
        slot = start + tl.arange(0, AT_ONCE)
        peak = tl.maximum(peak, tl.max(tl.load(lse + slot, mask=slot < slots, other=-float("inf")), 0))
    total = tl.full([], 0.0, WIDE)
    for start in range(0, SLOTS, AT_ONCE):
        slot = start + tl.arange(0, AT_ONCE)
        total += tl.sum(tl.exp2(tl.load(lse + slot, mask=slot < slots, other=-float("inf")) - peak), 0)
    return peak + tl.log2(total)


@triton.jit
def _combine_splits_kernel(
    part_ptr, lse_ptr, out_ptr,
    slots,
    stride_ah, stride_as, stride_oh,
    SPLITS: tl.constexpr, PER_SPLIT: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, AT_ONCE: tl.constexpr,
    WIDE: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    head = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, DIM)
    lse = lse_ptr + head * slots
    total = _total_of_head(lse, slots, SPLITS * PER_SPLIT, AT_ONCE * PER_SPLIT, WIDE)
    out = tl.zeros([DIM], WIDE)
    for start in range(0, SPLITS, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        slot = split[:, None] * PER_SPLIT + tl.arange(0, PER_SPLIT)[None, :]
        share = tl.sum(tl.exp2(tl.load(lse + slot, mask=slot < slots, other=-float("inf")) - total), 1)
        places = part_ptr + (head // GROUP) * stride_ah + split[:, None] * stride_as + (head % GROUP) * DIM
        part = tl.load(places + dims[None, :], mask=(split < SPLITS)[:, None], other=0.0)
        out += tl.sum(part * share[:, None], 0)
    tl.store(out_ptr + head * stride_oh + dims, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _block_mass_kernel(
    lse_ptr, mass_ptr,
    slots,
    stride_mh, stride_mk,
    PICKS: tl.constexpr, SLOTS: tl.constexpr, GROUP: tl.constexpr, AT_ONCE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0).to(tl.int64)
    pick = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    mass = tl.zeros([AT_ONCE], WIDE)
    for row in range(GROUP):
        lse = lse_ptr + (kv_head * GROUP + row) * slots
        total = _total_of_head(lse, slots, SLOTS, AT_ONCE, WIDE)
        mass += tl.exp2(tl.load(lse + pick, mask=pick < PICKS, other=-float("inf")) - total)
    tl.store(mass_ptr + kv_head * stride_mh + pick * stride_mk, mass.to(tl.float32), mask=pick < PICKS)


def sparse_attention_decode(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    blocks: Tensor,
    length: int | Tensor,
    scale: float,
    mass: Tensor | None = None,
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result; q and pages of one dtype, the last dimension a
    power of two, the block size one from 16 on, the last dimension adjacent in memory.

    length may be an int64 tensor of one element on the device, for a captured graph.
    """
    if q.shape[-1] < LEAST_CHANNELS:
        wide_out = sparse_attention_decode(widened(q), widened(pages), page_table, blocks, length, scale, mass)
        return wide_out[..., : q.shape[-1]]
    heads, dim = q.shape
    kv_heads, picks = blocks.shape
    block_size = pages.shape[3]
    group = heads // kv_heads
    assert q.stride(-1) == pages.stride(-1) == page_table.stride(-1) == 1
    assert q.dtype == pages.dtype
    wide = torch.promote_types(q.dtype, torch.float32)
    triton_wide = tl.float64 if q.dtype == torch.float64 else tl.float32
    # float32 needs twice the registers for the same tokens.
    per_split = _BLOCKS_PER_SPLIT if q.element_size() == 2 and block_size <= 64 else 1
    splits = triton.cdiv(picks, per_split)
    slots = splits * per_split
    part = torch.empty(kv_heads, splits, group, dim, dtype=wide, device=q.device)
    lse = torch.empty(heads, slots, dtype=wide, device=q.device)
    out = torch.empty(heads, dim, dtype=q.dtype, device=q.device)
    rows = max(_MIN_ROWS, triton.next_power_of_2(group))
    _attend_split_kernel[(splits, kv_heads)](
        q, pages, page_table, blocks, part, lse,
        length, scale * math.log2(math.e), slots,
        q.stride(0), pages.stride(0), pages.stride(1), pages.stride(2), pages.stride(3),
        page_table.stride(0) if page_table.ndim > 1 else 0,
        blocks.stride(0), blocks.stride(1), part.stride(0), part.stride(1),
        LENGTH_IN_MEMORY=isinstance(length, Tensor), PICKS=picks, PER_SPLIT=per_split, GROUP=group, ROWS=rows,
        BLOCK=block_size, DIM=dim, WIDE=triton_wide,
        num_warps=1 if INTERPRETED else 4, num_stages=1, **overlapped(q.device),
    )  # fmt: skip
    _combine_splits_kernel[(heads,)](
        part, lse, out,
        slots,
        part.stride(0), part.stride(1), out.stride(0),
        SPLITS=splits, PER_SPLIT=per_split, GROUP=group, DIM=dim,
        AT_ONCE=min(_SPLITS_AT_ONCE, triton.next_power_of_2(splits)), WIDE=triton_wide,
        num_warps=1 if INTERPRETED else 4, num_stages=1, **overlapped(q.device),
    )  # fmt: skip
    if mass is not None:
        at_once = min(128, triton.next_power_of_2(slots))
        _block_mass_kernel[(kv_heads, triton.cdiv(picks, at_once))](
            lse, mass,
            slots,
            mass.stride(0), mass.stride(1),
            PICKS=picks, SLOTS=slots, GROUP=group, AT_ONCE=at_once, WIDE=triton_wide,
            num_warps=1, num_stages=1,
        )  # fmt: skip
    return out
