"""Packed matrices to plain numbers or 8-bit codes on a GPU, for products with many tokens. Knows planes, not products.

Bound by bytes, most of them written: 2.5 bytes for a weight of 4 bits. For each plane a thread turns its four words
into four neighbouring numbers; four threads side by side write 32 bytes, the least that memory takes whole.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.packed_dot import ONE_HIGH, ONE_LOW, field
from salalocal_kernels.ref.planes import Planes

# Adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even, of anything below 2^22.
_ROUND = tl.constexpr(12582912.0)
_ROWS = 4
_QUADS = 64
_WARPS = 4


@triton.jit
def _unpack_planes_kernel(
    words_ptr, scales_ptr, zeros_ptr, row_scales_ptr, out_ptr, rows_total, one_high, one_low, stride_ot,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, QUADS: tl.constexpr, SCALES: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    PLANES: tl.constexpr = 32 // BITS
    SPAN: tl.constexpr = GROUP // PLANES
    QUADS_PER_GROUP: tl.constexpr = SPAN // 4
    ALL_QUADS: tl.constexpr = COLUMNS * BITS // 128
    GROUPS: tl.constexpr = COLUMNS // GROUP
    CENTER: tl.constexpr = 1 << (BITS - 1)
    RUNS: tl.constexpr = (ALL_QUADS + QUADS - 1) // QUADS
    first_row = (tl.program_id(0) // RUNS).to(tl.int64) * ROWS
    words_ptr += first_row * (ALL_QUADS * 4)
    scales_ptr += first_row * GROUPS
    zeros_ptr += first_row * GROUPS
    out_ptr += first_row * stride_ot
    rows = tl.arange(0, ROWS)
    lane = tl.arange(0, 4)
    quads = tl.program_id(0) % RUNS * QUADS + tl.arange(0, QUADS)
    inside = (quads < ALL_QUADS)[:, None] & (first_row + rows < rows_total)[None, :]
    groups = quads // QUADS_PER_GROUP
    at_words = quads[:, None, None] * 4 + rows[None, :, None] * (ALL_QUADS * 4) + lane[None, None, :]
    words = tl.load(words_ptr + at_words, mask=inside[:, :, None], other=0, eviction_policy="evict_first")
    at_groups = groups[:, None] + rows[None, :] * GROUPS
    if HAS_ZEROS:
        zeros = tl.load(zeros_ptr + at_groups, mask=inside, other=0).to(tl.float32)
    if SCALES:
        scales = tl.load(scales_ptr + at_groups, mask=inside, other=0.0).to(tl.float32)
    if row_scales_ptr is not None:
        row_scales = tl.load(row_scales_ptr + first_row + rows, mask=first_row + rows < rows_total, other=0.0)
        # Rounded as in the definition: of 4-bit steps many values lie halfway between two codes.
        inverse = tl.where(row_scales > 0, tl.div_rn(1.0, row_scales), 0.0)[None, :, None]
    columns = groups * GROUP + quads % QUADS_PER_GROUP * 4
    at_out = columns[:, None, None] + rows[None, :, None].to(tl.int64) * stride_ot + lane[None, None, :]
    for plane in tl.static_range(PLANES):
        values = field(words, one_high, one_low, plane, BITS)
        # Integers below 2^24: these differences are exact, and the product is rounded once, when it is stored.
        if HAS_ZEROS:
            values -= zeros[:, :, None] + (16 if BITS == 4 and plane % 2 == 1 else 256)
        else:
            values -= CENTER + (16 if BITS == 4 and plane % 2 == 1 else 256)
        if SCALES:
            values *= scales[:, :, None]
        if row_scales_ptr is not None:
            values *= inverse
        if ROUNDS:
            values = (values + _ROUND) - _ROUND
        tl.store(out_ptr + at_out + plane * SPAN, values.to(out_ptr.dtype.element_ty), mask=inside[:, :, None])


def plane_values(matrix: Planes, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The function of `ref/planes.py`, bit for bit, for bf16, fp16 and float32.

    Args:
        matrix: [N, K].
        dtype: of the values.
        out: [N, K] of that dtype to write to, rows of adjacent numbers; a new tensor without it.
    """
    return _unpack(matrix, dtype, out, scales=True, row_scales=None)


def plane_steps(matrix: Planes, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Steps from zero, code - zero, [N, K] exactly: int8, or fp8 e4m3 from 4 bits (-15 to 15 are numbers of e4m3)."""
    assert dtype == torch.int8 or (dtype == torch.float8_e4m3fn and matrix.bits == 4)
    return _unpack(matrix, dtype, out, scales=False, row_scales=None)


def plane_codes(matrix: Planes, row_scales: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The function of `ref/planes.py`, same arguments and result; fp8 on sm_89 and later."""
    assert dtype in (torch.int8, torch.float8_e4m3fn)
    return _unpack(matrix, dtype, out, scales=True, row_scales=row_scales.contiguous())


def _unpack(
    matrix: Planes, dtype: torch.dtype, given: Tensor | None, scales: bool, row_scales: Tensor | None
) -> Tensor:
    rows, columns = matrix.shape
    out = torch.empty(matrix.shape, dtype=dtype, device=matrix.words.device) if given is None else given
    assert out.shape == (rows, columns)
    assert out.dtype == dtype
    assert out.stride(1) == 1
    if out.numel():
        runs = triton.cdiv(columns * matrix.bits // 128, _QUADS)
        _unpack_planes_kernel[(runs * triton.cdiv(rows, _ROWS),)](
            matrix.words, matrix.scales, matrix.scales.view(torch.uint8) if matrix.zeros is None else matrix.zeros,
            row_scales, out, rows, ONE_HIGH, ONE_LOW, out.stride(0),
            BITS=matrix.bits, HAS_ZEROS=matrix.zeros is not None, GROUP=matrix.group_size, COLUMNS=columns,
            ROWS=_ROWS, QUADS=_QUADS, SCALES=scales, ROUNDS=row_scales is not None and dtype == torch.int8,
            # Contracted, the product and the sum that rounds it would be rounded once, not twice.
            num_warps=_WARPS, enable_fp_fusion=row_scales is None,
        )  # fmt: skip
    return out
