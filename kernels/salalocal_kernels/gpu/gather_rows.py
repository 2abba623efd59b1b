"""Rows of an embedding table on a GPU, also out of pinned host memory, which the kernel reads through its address.

Bound by the bus for many tokens (a row of 4096 codes and its scales is 4.2 KB: 2.5 ms for 32,768 tokens at 55 GB/s),
by one round trip over it for one token. A program takes a whole row, 16 bytes a thread, so all reads of a row are under
way at once. The host copies nothing, so the launch can be part of a CUDA graph whose ids change between replays.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of a row that a program takes, and those of a table without groups that are treated as one.
_NUMBERS = 4096
_LANES = 64


@triton.jit
def _gather_rows_kernel(
    table_ptr, scales_ptr, ids_ptr, out_ptr, columns, vocabulary, stride_row, stride_scales, stride_ids,
    FACTOR: tl.constexpr, HAS_SCALES: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr, ROUND: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(ids_ptr + token * stride_ids).to(tl.int64)
    # An id outside the table gives NaN instead of a read from anywhere.
    is_row = (row >= 0) & (row < vocabulary)
    row = tl.where(is_row, row, 0)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    at = groups[:, None] * LANES + tl.arange(0, LANES)[None, :]
    inside = at < columns
    values = tl.load(table_ptr + row * stride_row + at, mask=inside, other=0).to(WIDE)
    if HAS_SCALES:
        scales = tl.load(scales_ptr + row * stride_scales + groups, mask=groups * LANES < columns, other=0.0)
        values *= scales.to(WIDE)[:, None]
    values = tl.where(is_row, values.to(ROUND).to(WIDE) * FACTOR, float("nan"))
    tl.store(out_ptr + token * columns + at, values, mask=inside)


def gather_rows(table: Tensor, scales: Tensor | None, ids: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """The op of `ref/gather_rows.py`, same arguments and result.

    `table` and `scales` have rows of adjacent numbers, on the device of `ids` or in pinned host memory.
    """
    assert table.stride(1) == 1
    assert scales is None or scales.stride(1) == 1
    tokens, columns = ids.shape[0], table.shape[1]
    wide = torch.promote_types(dtype, torch.float32)
    out = torch.empty(tokens, columns, dtype=wide, device=ids.device)
    if not out.numel():
        return out
    lanes = _LANES if scales is None else columns // scales.shape[1]
    groups = min(_NUMBERS // lanes, int(triton.next_power_of_2(triton.cdiv(columns, lanes))))
    _gather_rows_kernel[(tokens, triton.cdiv(columns, groups * lanes))](
        table, table if scales is None else scales, ids, out, columns, table.shape[0],
        table.stride(0), 0 if scales is None else scales.stride(0), ids.stride(0),
        FACTOR=factor, HAS_SCALES=scales is not None, GROUPS=groups, LANES=lanes,
        ROUND=_TYPES[dtype], WIDE=_TYPES[wide], num_warps=max(1, min(8, groups * lanes // 512)),
    )  # fmt: skip
    return out


_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32, torch.float64: tl.float64}
