"""Both levels of compressed keys after new tokens, on a GPU: one launch, from pages, in place.

Bound by the launch while decoding, by bytes when reading a chunk: 4 reads of every key, 3 of them from a cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.target import INTERPRETED

# Tokens of a window that are added at once.
ROWS_AT_ONCE = 32


@triton.jit
def write_mean(
    pages_ptr, table_ptr, out_ptr, window, complete, kv_head, newest, newest_at,
    stride_pp, stride_ph, stride_pb, stride_th, stride_oh, stride_on,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, HAS_NEWEST: tl.constexpr,
):  # fmt: skip
    """One window's mean, where the window is among the `complete` ones. With HAS_NEWEST the key of the token at
    `newest_at` is not read from its page, where it may be missing yet, but given: [DIM_PADDED]."""
    if window < complete:
        dims = tl.arange(0, DIM_PADDED)
        total = tl.zeros([DIM_PADDED], WIDE)
        for start in range(0, KERNEL, ROWS):
            rows = start + tl.arange(0, ROWS)
            token = window * STRIDE + rows
            is_inside = rows < KERNEL
            if HAS_NEWEST:
                is_inside = is_inside & (token != newest_at)
            page = tl.load(table_ptr + kv_head * stride_th + token // BLOCK, mask=is_inside, other=0).to(tl.int64)
            places = pages_ptr + page * stride_pp + kv_head * stride_ph + (token % BLOCK) * stride_pb
            keys = tl.load(places[:, None] + dims[None, :], mask=is_inside[:, None] & (dims < DIM)[None, :], other=0.0)
            if HAS_NEWEST:
                keys = tl.where((token == newest_at)[:, None], newest[None, :], keys)
            total += tl.sum(keys.to(WIDE), 0)
        mean = (total / KERNEL).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + kv_head * stride_oh + window * stride_on + dims, mean, mask=dims < DIM)


@triton.jit(do_not_specialize=["tokens", "position", "fine_programs"])
def _extend_compressed_keys_kernel(
    pages_ptr, table_ptr, fine_ptr, coarse_ptr,
    tokens, position, fine_programs,
    stride_pp, stride_ph, stride_pb, stride_th, stride_fh, stride_fn, stride_ch, stride_cn,
    POSITION_IN_MEMORY: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    first = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    # Of L tokens, L / stride - 1 windows of two strides are complete.
    if program < fine_programs:
        write_mean(
            pages_ptr, table_ptr, fine_ptr,
            tl.maximum(first // STRIDE - 1, 0) + program, (first + tokens) // STRIDE - 1, kv_head,
            None, 0,
            stride_pp, stride_ph, stride_pb, stride_th, stride_fh, stride_fn,
            2 * STRIDE, STRIDE, BLOCK, DIM, DIM_PADDED, ROWS, WIDE, False,
        )  # fmt: skip
    else:
        write_mean(
            pages_ptr, table_ptr, coarse_ptr,
            tl.maximum(first // (4 * STRIDE) - 1, 0) + program - fine_programs, (first + tokens) // (4 * STRIDE) - 1,
            kv_head, None, 0,
            stride_pp, stride_ph, stride_pb, stride_th, stride_ch, stride_cn,
            8 * STRIDE, 4 * STRIDE, BLOCK, DIM, DIM_PADDED, ROWS, WIDE, False,
        )  # fmt: skip


def extend_compressed_keys(
    pages: Tensor,
    page_table: Tensor,
    fine: Tensor,
    coarse: Tensor,
    first_position: int | Tensor,
    tokens: int,
    kernel_stride: int,
) -> None:
    """The op of `ref/extend_compressed_keys.py`, same arguments; channels adjacent in memory.

    first_position may be an int64 tensor of one element on the device, for a captured graph.
    """
    kv_heads, block_size, dim = pages.shape[1], pages.shape[3], pages.shape[4]
    assert pages.stride(-1) == fine.stride(-1) == coarse.stride(-1) == 1
    if tokens == 0:
        return
    # However the tokens lie, no more strides than these end among them.
    fine_programs = triton.cdiv(tokens, kernel_stride)
    coarse_programs = triton.cdiv(tokens, 4 * kernel_stride)
    _extend_compressed_keys_kernel[(fine_programs + coarse_programs, kv_heads)](
        pages, page_table, fine, coarse,
        tokens, first_position, fine_programs,
        pages.stride(0), pages.stride(1), pages.stride(3), page_table.stride(0) if page_table.ndim > 1 else 0,
        fine.stride(0), fine.stride(1), coarse.stride(0), coarse.stride(1),
        POSITION_IN_MEMORY=isinstance(first_position, Tensor), STRIDE=kernel_stride, BLOCK=block_size, DIM=dim,
        DIM_PADDED=triton.next_power_of_2(dim), ROWS=min(ROWS_AT_ONCE, triton.next_power_of_2(2 * kernel_stride)),
        WIDE=tl.float64 if pages.dtype == torch.float64 else tl.float32,
        num_warps=1 if INTERPRETED else 2,
    )  # fmt: skip
