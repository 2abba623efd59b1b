"""One token's K and V into the slots of its block and into host memory, on a GPU: one launch.

Bound by the launch; the 1 KiB for the host is on its way when the kernel ends.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait
from salalocal_kernels.gpu.kv_codes import EXACT, code_options, of_codes, to_strip
from salalocal_kernels.ref.fetch_blocks import HostPages, SlotPool


@triton.jit
def _write_token_kernel(
    keys_ptr, values_ptr, table_ptr, slot_table_ptr, position, addresses_ptr, slots_ptr,
    per_segment,
    stride_kh, stride_vh, stride_th,
    POSITION_IN_MEMORY: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, BYTES: tl.constexpr, IN_CODES: tl.constexpr, IS_FP8: tl.constexpr, PART: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    head = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1)
    at = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    block = at // BLOCK
    dims = tl.arange(0, PADDED)
    rows = keys_ptr + head * stride_kh
    if side == 1:
        rows = values_ptr + head * stride_vh
    row = tl.load(rows + dims, mask=dims < DIM)
    line = side * BLOCK + at % BLOCK
    inside = line * DIM + dims
    page = tl.load(table_ptr + block)
    address = tl.load(addresses_ptr + page // per_segment)
    number = (page % per_segment) * HEADS + head
    if IN_CODES:
        address += number * (2 * BLOCK * (DIM + 2))
        codes, largest, scale = to_strip(row[None, :].to(tl.float32), IS_FP8, PART)
        target = address.to(tl.pointer_type(tl.uint8), bitcast=True)
        tl.store(target + inside[None, :], codes, mask=dims[None, :] < DIM)
        upper = (address + 2 * BLOCK * DIM).to(tl.pointer_type(tl.int16), bitcast=True)
        tl.store(upper + line + tl.arange(0, 1), largest)
        row = tl.sum(of_codes(codes, IS_FP8) * scale[:, None], 0)
    else:
        address += number * (2 * BLOCK * DIM * BYTES)
        target = address.to(tl.pointer_type(slots_ptr.dtype.element_ty), bitcast=True)
        tl.store(target + inside, row, mask=dims < DIM)
    slot = tl.load(slot_table_ptr + head * stride_th + block)
    places = slots_ptr + slot * (2 * BLOCK * DIM) + inside
    tl.store(places, row.to(slots_ptr.dtype.element_ty), mask=dims < DIM)


def write_token(
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    slot_table: Tensor,
    position: int | Tensor,
    host: HostPages,
    pool: SlotPool,
) -> None:
    """The op of `ref/write_token.py`, same arguments; channels adjacent in memory, and the host's memory is one that
    the GPU writes by itself.

    position may be an int64 tensor of one element on the device, for a captured graph.
    """
    (kv_heads, dim), block_size = keys.shape, pool.slots.shape[2]
    options = code_options(host.codes or torch.int8)
    assert keys.stride(-1) == values.stride(-1) == page_table.stride(0) == slot_table.stride(1) == 1
    _write_token_kernel[(kv_heads, 2)](
        keys, values, page_table, slot_table, position, host.addresses, pool.slots,
        host.per_segment,
        keys.stride(0), values.stride(0), slot_table.stride(0),
        POSITION_IN_MEMORY=isinstance(position, Tensor), HEADS=kv_heads, BLOCK=block_size, DIM=dim,
        PADDED=triton.next_power_of_2(dim), BYTES=keys.element_size(), IN_CODES=host.codes is not None, **options,
        num_warps=1, **overlapped(keys.device), **EXACT,
    )  # fmt: skip
