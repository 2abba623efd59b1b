"""One token's key and value into its page, and the windows it completes, in one launch.

Bound by the launch: per kv head one program writes, one takes the mean of the fine window and one of the coarse. The
last token of both windows is the new one, whose key the program has; so none reads what another writes. Position and
page table are looked up while the launch before is still running: within a step nothing writes them before its end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait
from salalocal_kernels.gpu.extend_compressed_keys import ROWS_AT_ONCE, write_mean
from salalocal_kernels.gpu.target import INTERPRETED


@triton.jit
def _append_token_kernel(
    pages_ptr, table_ptr, fine_ptr, coarse_ptr, key_ptr, value_ptr, position,
    stride_pp, stride_ph, stride_pv, stride_pb, stride_fh, stride_fn, stride_ch, stride_cn, stride_kh, stride_vh,
    POSITION_IN_MEMORY: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    part = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    at = (tl.load(position) if POSITION_IN_MEMORY else position) + tl.zeros([], tl.int64)
    page = tl.load(table_ptr + at // BLOCK).to(tl.int64)
    wait(IS_EARLY)
    dims = tl.arange(0, DIM_PADDED)
    key = tl.load(key_ptr + kv_head * stride_kh + dims, mask=dims < DIM, other=0.0)
    # The last program, so that the interpreter, which runs one after another, shows a mean that reads the page.
    if part == tl.num_programs(0) - 1:
        value = tl.load(value_ptr + kv_head * stride_vh + dims, mask=dims < DIM, other=0.0)
        place = pages_ptr + page * stride_pp + kv_head * stride_ph + (at % BLOCK) * stride_pb + dims
        tl.store(place, key, mask=dims < DIM)
        tl.store(place + stride_pv, value, mask=dims < DIM)
    elif part == 0:
        write_mean(
            pages_ptr, table_ptr, fine_ptr, tl.maximum(at // STRIDE - 1, 0), (at + 1) // STRIDE - 1, kv_head, key, at,
            stride_pp, stride_ph, stride_pb, 0, stride_fh, stride_fn,
            2 * STRIDE, STRIDE, BLOCK, DIM, DIM_PADDED, ROWS, WIDE, True,
        )  # fmt: skip
    else:
        write_mean(
            pages_ptr, table_ptr, coarse_ptr, tl.maximum(at // (4 * STRIDE) - 1, 0), (at + 1) // (4 * STRIDE) - 1,
            kv_head, key, at, stride_pp, stride_ph, stride_pb, 0, stride_ch, stride_cn,
            8 * STRIDE, 4 * STRIDE, BLOCK, DIM, DIM_PADDED, ROWS, WIDE, True,
        )  # fmt: skip


def append_token(
    pages: Tensor,
    page_table: Tensor,
    fine: Tensor | None,
    coarse: Tensor | None,
    position: int | Tensor,
    key: Tensor,
    value: Tensor,
    kernel_stride: int,
) -> None:
    """The op of `ref/append_token.py`, same arguments; channels adjacent in memory.

    Where `position` lies in memory, neither it nor `page_table` is written by launches that may still be running.
    """
    kv_heads, block_size, dim = pages.shape[1], pages.shape[3], pages.shape[4]
    assert (fine is None) == (coarse is None)
    # Never followed where there are none: then only the program that writes is launched.
    levels = (pages, pages) if fine is None or coarse is None else (fine, coarse)
    assert all(x.stride(-1) == 1 for x in (pages, key, value, *levels))
    stride = 1 if fine is None else kernel_stride
    _append_token_kernel[(1 if fine is None else 3, kv_heads)](
        pages, page_table, *levels, key, value, position,
        pages.stride(0), pages.stride(1), pages.stride(2), pages.stride(3),
        levels[0].stride(0), levels[0].stride(1), levels[1].stride(0), levels[1].stride(1),
        key.stride(0), value.stride(0),
        POSITION_IN_MEMORY=isinstance(position, Tensor), STRIDE=stride, BLOCK=block_size, DIM=dim,
        DIM_PADDED=triton.next_power_of_2(dim), ROWS=min(ROWS_AT_ONCE, triton.next_power_of_2(2 * stride)),
        WIDE=tl.float64 if pages.dtype == torch.float64 else tl.float32,
        num_warps=1 if INTERPRETED else 2, **overlapped(pages.device),
    )  # fmt: skip
