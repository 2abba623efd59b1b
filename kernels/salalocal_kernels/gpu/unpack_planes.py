"""Packed matrices to plain numbers or 8-bit codes on a GPU, for products with many tokens. Knows planes, not products.

Bound by bytes, most of them written: 2.5 bytes for a weight of 4 bits. A program takes some groups with all their
planes, which side by side are a run of neighbouring numbers, so that threads store 16 bytes and warps whole lines; the
words that several planes are taken from come out of the L1 cache. Storing plane by plane takes a third longer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.ref.planes import Planes

# Adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even, of anything below 2^22.
_ROUND = tl.constexpr(12582912.0)
# Numbers of a program, and its warps.
_NUMBERS = 1024
_WARPS = 2


@triton.jit
def _unpack_planes_kernel(
    words_ptr, scales_ptr, zeros_ptr, row_scales_ptr, out_ptr, groups_total, stride_ot,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr,
    SCALES: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    PLANES: tl.constexpr = 32 // BITS
    SPAN: tl.constexpr = GROUP // PLANES
    GROUPS_OF_ROW: tl.constexpr = COLUMNS // GROUP
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    plane, at = tl.arange(0, PLANES), tl.arange(0, SPAN)
    inside = group < groups_total
    words = tl.load(
        words_ptr + group[:, None] * SPAN + at[None, :], mask=inside[:, None], other=0, eviction_policy="evict_first"
    )
    zeros = tl.full([GROUPS], 1 << (BITS - 1), tl.int32)
    if HAS_ZEROS:
        zeros = tl.load(zeros_ptr + group, mask=inside, other=0).to(tl.int32)
    codes = (words[:, None, :] >> (BITS * plane)[None, :, None]) & ((1 << BITS) - 1)
    # Steps are whole numbers, so their product with a scale is rounded once, when it is stored.
    values = (codes - zeros[:, None, None]).to(tl.float32)
    if SCALES:
        values *= tl.load(scales_ptr + group, mask=inside, other=0.0).to(tl.float32)[:, None, None]
    row = group // GROUPS_OF_ROW
    if row_scales_ptr is not None:
        row_scales = tl.load(row_scales_ptr + row, mask=inside, other=0.0)
        # Rounded as in the definition: of 4-bit steps many values lie halfway between two codes.
        values *= tl.where(row_scales > 0, tl.div_rn(1.0, row_scales), 0.0)[:, None, None]
    if ROUNDS:
        values = (values + _ROUND) - _ROUND
    first = row * stride_ot + group % GROUPS_OF_ROW * GROUP
    places = first[:, None, None] + (plane * SPAN)[None, :, None] + at[None, None, :]
    tl.store(out_ptr + places, values.to(out_ptr.dtype.element_ty), mask=inside[:, None, None])


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
        together, groups = _NUMBERS // matrix.group_size, rows * (columns // matrix.group_size)
        _unpack_planes_kernel[(triton.cdiv(groups, together),)](
            matrix.words, matrix.scales, matrix.scales.view(torch.uint8) if matrix.zeros is None else matrix.zeros,
            row_scales, out, groups, out.stride(0),
            BITS=matrix.bits, HAS_ZEROS=matrix.zeros is not None, GROUP=matrix.group_size, COLUMNS=columns,
            GROUPS=together, SCALES=scales, ROUNDS=row_scales is not None and dtype == torch.int8,
            # Contracted, the product and the sum that rounds it would be rounded once, not twice.
            num_warps=_WARPS, enable_fp_fusion=row_scales is None,
        )  # fmt: skip
    return out
