"""Blocks in host memory brought into slots on a GPU: one program assigns slots, many copy, and the host knows nothing.

Bound by the bus: a missing block is 32 KiB, or 16.25 in 8 bits, read through its address in page-locked memory by a few
programs at once, so that everything missing is under way together. Assigning takes one program as long as a few
launches; where nothing is missing it looks at no slot but those of the blocks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait
from salalocal_kernels.gpu.kv_codes import alignment, code_options, of_strip, row_tiles
from salalocal_kernels.gpu.target import INTERPRETED
from salalocal_kernels.ref.fetch_blocks import OLDEST_AGE, HostPages, SlotPool

# Slots that are looked at together, and words of 4 bytes that a program copies.
_TILE = 4096
_WORDS = 2048
# Ages are sorted by their upper and then by their lower 8 bits.
_BINS = 256


@triton.jit
def _ages(stamps_ptr, slot, now, SLOTS: tl.constexpr, OLDEST: tl.constexpr):
    stamps = tl.load(stamps_ptr + slot, mask=slot < SLOTS, other=0)
    return tl.where(slot < SLOTS, tl.minimum(now - stamps, OLDEST), -1)


@triton.jit
def _oldest_with(counts, wanted, BINS: tl.constexpr):
    """The highest bin that has `wanted` in it and above, and how many are above it."""
    bins = tl.arange(0, BINS)
    from_here = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    found = tl.max(tl.where(from_here >= wanted, bins, 0), 0)
    return found, tl.sum(tl.where(bins > found, counts, 0), 0)


@triton.jit
def _write_victims(
    stamps_ptr, victims_ptr, now, wanted,
    SLOTS: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr, OLDEST: tl.constexpr,
):  # fmt: skip
    """The `wanted` slots that were not used for longest, ascending; of the last age those of lower number."""
    lanes = tl.arange(0, TILE)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(0, SLOTS, TILE):
        age = _ages(stamps_ptr, start + lanes, now, SLOTS, OLDEST)
        counts += tl.histogram(tl.maximum(age, 0) // BINS, BINS, mask=age >= 0)
    upper, older = _oldest_with(counts, wanted, BINS)
    counts = tl.zeros([BINS], tl.int32)
    for start in range(0, SLOTS, TILE):
        age = _ages(stamps_ptr, start + lanes, now, SLOTS, OLDEST)
        counts += tl.histogram(tl.maximum(age, 0) % BINS, BINS, mask=(age >= 0) & (age // BINS == upper))
    lower, older_here = _oldest_with(counts, wanted - older, BINS)
    limit = upper * BINS + lower
    room = wanted - older - older_here
    taken = 0
    equals = 0
    for start in range(0, SLOTS, TILE):
        slot = start + lanes
        age = _ages(stamps_ptr, slot, now, SLOTS, OLDEST)
        is_equal = (age == limit).to(tl.int32)
        is_taken = (age > limit) | ((age == limit) & (equals + tl.cumsum(is_equal, 0) <= room))
        place = taken + tl.cumsum(is_taken.to(tl.int32), 0) - 1
        tl.store(victims_ptr + place, slot, mask=is_taken)
        taken += tl.sum(is_taken.to(tl.int32), 0)
        equals += tl.sum(is_equal, 0)


@triton.jit
def _assign_slots_kernel(
    blocks_ptr, table_ptr, length, holds_ptr, stamps_ptr, slot_of_ptr, clock_ptr, counts_ptr, slot_table_ptr,
    victims_ptr, jobs_ptr,
    stride_bh, stride_bk, stride_sh, stride_th,
    LENGTH_IN_MEMORY: tl.constexpr, HEADS: tl.constexpr, PICKS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr, OLDEST: tl.constexpr,
    IS_COUNTED: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    end = (tl.load(length) if LENGTH_IN_MEMORY else length) + tl.zeros([], tl.int64)
    now = tl.load(clock_ptr) + 1
    index = tl.arange(0, PADDED)
    head = (index // PICKS).to(tl.int64)
    places = blocks_ptr + head * stride_bh + (index % PICKS) * stride_bk
    block = tl.load(places, mask=index < HEADS * PICKS, other=-1).to(tl.int64)
    is_there = (block >= 0) & (block * BLOCK < end)
    page = tl.load(table_ptr + block, mask=is_there, other=0)
    slot = tl.load(slot_of_ptr + head * stride_sh + page, mask=is_there, other=-1)
    is_here = is_there & (slot >= 0)
    is_missing = is_there & (slot < 0)
    missing = tl.sum(is_missing.to(tl.int32), 0)
    # Everybody has read the clock and the map before anybody writes.
    tl.debug_barrier()
    tl.store(clock_ptr, now)
    tl.store(stamps_ptr + slot, now, mask=is_here)
    if IS_COUNTED:
        tl.store(counts_ptr, tl.load(counts_ptr) + tl.sum(is_here.to(tl.int32), 0))
        tl.store(counts_ptr + 1, tl.load(counts_ptr + 1) + missing)
    if missing > 0:
        tl.debug_barrier()
        _write_victims(stamps_ptr, victims_ptr, now, missing, SLOTS, TILE, BINS, OLDEST)
        tl.debug_barrier()
        rank = tl.cumsum(is_missing.to(tl.int32), 0) - 1
        slot = tl.where(is_missing, tl.load(victims_ptr + rank, mask=is_missing, other=-1), slot)
        held = tl.load(holds_ptr + slot, mask=is_missing, other=-1)
        tl.store(slot_of_ptr + (held % HEADS) * stride_sh + held // HEADS, -1, mask=is_missing & (held >= 0))
        tl.store(slot_of_ptr + head * stride_sh + page, slot, mask=is_missing)
        tl.store(holds_ptr + slot, (page * HEADS + head).to(tl.int32), mask=is_missing)
        tl.store(stamps_ptr + slot, now, mask=is_missing)
    tl.store(slot_table_ptr + head * stride_th + block, slot.to(tl.int64), mask=is_there)
    tl.store(jobs_ptr + index, tl.where(is_missing, slot, -1), mask=index < HEADS * PICKS)


@triton.jit
def _host_address(
    blocks_ptr, table_ptr, addresses_ptr, index, per_segment, strip_bytes, stride_bh, stride_bk,
    HEADS: tl.constexpr, PICKS: tl.constexpr,
):  # fmt: skip
    """Of a picked block of one kv head in host memory, where a page has `strip_bytes` for each head."""
    head = (index // PICKS).to(tl.int64)
    block = tl.load(blocks_ptr + head * stride_bh + (index % PICKS) * stride_bk)
    page = tl.load(table_ptr + block)
    return tl.load(addresses_ptr + page // per_segment) + ((page % per_segment) * HEADS + head) * strip_bytes


@triton.jit
def _copy_blocks_kernel(
    blocks_ptr, table_ptr, addresses_ptr, jobs_ptr, slots_ptr,
    per_segment, words,
    stride_bh, stride_bk,
    HEADS: tl.constexpr, PICKS: tl.constexpr, AT_ONCE: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    index = tl.program_id(0)
    slot = tl.load(jobs_ptr + index).to(tl.int64)
    if slot >= 0:
        address = _host_address(
            blocks_ptr, table_ptr, addresses_ptr, index, per_segment, words * 4, stride_bh, stride_bk, HEADS, PICKS
        )
        source = address.to(tl.pointer_type(tl.int32), bitcast=True)
        at = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
        # An address out of memory is not known to be one of 16 bytes.
        values = tl.load(tl.multiple_of(source + at, [16]), mask=at < words)
        tl.store(slots_ptr + slot * words + at, values, mask=at < words)


@triton.jit
def _copy_codes_kernel(
    blocks_ptr, table_ptr, addresses_ptr, jobs_ptr, slots_ptr,
    per_segment,
    stride_bh, stride_bk,
    HEADS: tl.constexpr, PICKS: tl.constexpr, LINES: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    ROWS: tl.constexpr, ALIGNED: tl.constexpr, IS_FP8: tl.constexpr, PART: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    index = tl.program_id(0)
    slot = tl.load(jobs_ptr + index).to(tl.int64)
    if slot >= 0:
        address = _host_address(
            blocks_ptr, table_ptr, addresses_ptr, index, per_segment, LINES * (DIM + 2),
            stride_bh, stride_bk, HEADS, PICKS,
        )  # fmt: skip
        codes = address.to(tl.pointer_type(tl.uint8), bitcast=True)
        largest = (address + LINES * DIM).to(tl.pointer_type(tl.int16), bitcast=True)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        dims = tl.arange(0, PADDED)
        inside = dims[None, :] < DIM
        values = of_strip(codes, largest, row, dims, inside, DIM, ALIGNED, IS_FP8, PART)
        places = slots_ptr + slot * (LINES * DIM) + row[:, None] * DIM + dims[None, :]
        tl.store(places, values.to(slots_ptr.dtype.element_ty), mask=inside)


def fetch_blocks(
    blocks: Tensor,
    page_table: Tensor,
    length: int | Tensor,
    host: HostPages,
    pool: SlotPool,
    slot_table: Tensor,
    is_counted: bool = True,
) -> None:
    """The op of `ref/fetch_blocks.py`, same arguments; a slot is a multiple of 16 bytes, and the host's memory is one
    that the GPU reads by itself.

    length may be an int64 tensor of one element on the device, for a captured graph.
    """
    kv_heads, picks = blocks.shape
    slots = pool.slots.flatten(1).view(torch.int32)
    words = slots.shape[1]
    assert words % 4 == 0
    assert page_table.stride(0) == slot_table.stride(1) == pool.slot_of.stride(1) == 1
    assert kv_heads * picks <= 1 << 12
    padded = triton.next_power_of_2(kv_heads * picks)
    victims, jobs = torch.empty(2, padded, dtype=torch.int32, device=blocks.device)
    _assign_slots_kernel[(1,)](
        blocks, page_table, length, pool.holds, pool.stamps, pool.slot_of, pool.clock, pool.counts, slot_table,
        victims, jobs,
        blocks.stride(0), blocks.stride(1), pool.slot_of.stride(0), slot_table.stride(0),
        LENGTH_IN_MEMORY=isinstance(length, Tensor), HEADS=kv_heads, PICKS=picks, PADDED=padded,
        BLOCK=pool.slots.shape[2], SLOTS=slots.shape[0], TILE=min(_TILE, triton.next_power_of_2(slots.shape[0])),
        BINS=_BINS, OLDEST=OLDEST_AGE, IS_COUNTED=is_counted,
        num_warps=1 if INTERPRETED else 8, **overlapped(blocks.device),
    )  # fmt: skip
    if host.codes is not None:
        tiles = row_tiles(*pool.slots.shape[2:])
        _copy_codes_kernel[(kv_heads * picks, tiles["LINES"] // tiles["ROWS"])](
            blocks, page_table, host.addresses, jobs, pool.slots,
            host.per_segment,
            blocks.stride(0), blocks.stride(1),
            HEADS=kv_heads, PICKS=picks, **tiles, ALIGNED=alignment(tiles["DIM"]), **code_options(host.codes),
            num_warps=1 if INTERPRETED else 4, **overlapped(blocks.device),
        )  # fmt: skip
        return
    at_once = min(_WORDS, triton.next_power_of_2(words))
    _copy_blocks_kernel[(kv_heads * picks, triton.cdiv(words, at_once))](
        blocks, page_table, host.addresses, jobs, slots,
        host.per_segment, words,
        blocks.stride(0), blocks.stride(1),
        HEADS=kv_heads, PICKS=picks, AT_ONCE=at_once,
        num_warps=1 if INTERPRETED else 4, **overlapped(blocks.device),
    )  # fmt: skip
