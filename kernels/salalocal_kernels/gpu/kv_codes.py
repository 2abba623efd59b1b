"""K and V to strips of 8-bit codes and back on a GPU, and what other kernels need to read and write such strips.

Bound by bytes: 3 for a bf16 number. Codes of e4m3 are made and read by shifting bits, the same on every card; Triton
has their type only from sm_89 on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.ref import kv_codes
from salalocal_kernels.ref.kv_codes import LARGEST, strip_bytes

# Adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even, of anything below 2^22.
_ROUND = tl.constexpr(12582912.0)
_LEAST = tl.constexpr(kv_codes.LEAST)
_ROWS = 32
# Contracted, a product and the sum that rounds it would be rounded once, not twice.
EXACT = {"enable_fp_fusion": False}


def code_options(codes: torch.dtype) -> dict[str, float | bool]:
    """IS_FP8, and what turns a row's largest number into its scale."""
    return {"IS_FP8": codes == torch.float8_e4m3fn, "PART": 1 / LARGEST[codes]}


@triton.jit
def to_codes(steps, IS_FP8: tl.constexpr):
    """The nearest codes of numbers within their range, as bytes."""
    if IS_FP8:
        bits = steps.to(tl.int32, bitcast=True)
        size = tl.abs(steps)
        # A mantissa of 3 bits, and below 2^-6 multiples of 2^-9.
        normal = size.to(tl.int32, bitcast=True)
        normal = ((normal + 0x7FFFF + ((normal >> 20) & 1)) >> 20) - (120 << 3)
        small = ((size * 512 + _ROUND) - _ROUND).to(tl.int32)
        codes = (tl.where(size < 0.015625, small, normal) | ((bits >> 24) & 0x80)).to(tl.uint8)
    else:
        codes = ((steps + _ROUND) - _ROUND).to(tl.int8).to(tl.uint8, bitcast=True)
    return codes


@triton.jit
def of_codes(codes, IS_FP8: tl.constexpr):
    """Bytes -> float32, exactly."""
    if IS_FP8:
        wide = codes.to(tl.int32)
        # The same number in fp16, but for exponents that count from another one.
        half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True)
        values = half.to(tl.float32) * 256
    else:
        values = codes.to(tl.int8, bitcast=True).to(tl.float32)
    return values


@triton.jit
def to_strip(x, IS_FP8: tl.constexpr, PART: tl.constexpr):
    """Rows x [R, D] in float32: their codes, the upper half of their largest numbers, and their scales."""
    bits = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    bits = tl.where(bits.to(tl.float32, bitcast=True) < _LEAST, 0, bits)
    scale = bits.to(tl.float32, bitcast=True) * PART
    steps = x * tl.where(scale > 0, tl.div_rn(1.0, scale), 0.0)[:, None]
    return to_codes(steps, IS_FP8), (bits >> 16).to(tl.int16), scale


@triton.jit
def of_strip(
    codes_ptr, largest_ptr, row, dims, inside,
    DIM: tl.constexpr, ALIGNED: tl.constexpr, IS_FP8: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Rows [R] of a strip at these places in float32 [R, D]; ALIGNED bytes, by which every row begins."""
    places = tl.multiple_of(codes_ptr + row[:, None] * DIM + dims[None, :], [ALIGNED, ALIGNED])
    codes = tl.load(places, mask=inside, other=0)
    upper = tl.load(largest_ptr + row).to(tl.int32)
    return of_codes(codes, IS_FP8) * ((upper << 16).to(tl.float32, bitcast=True) * PART)[:, None]


@triton.jit
def _pack_pages_kernel(
    pages_ptr, codes_ptr, largest_ptr,
    LINES: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    IS_FP8: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    strip = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    inside = (row[:, None] < LINES) & (dims[None, :] < DIM)
    at = row[:, None] * DIM + dims[None, :]
    x = tl.load(pages_ptr + strip * (LINES * DIM) + at, mask=inside, other=0.0).to(tl.float32)
    codes, largest, _ = to_strip(x, IS_FP8, PART)
    tl.store(codes_ptr + strip * (LINES * (DIM + 2)) + at, codes, mask=inside)
    tl.store(largest_ptr + strip * (LINES * (DIM + 2) // 2) + LINES * DIM // 2 + row, largest, mask=row < LINES)


@triton.jit
def _unpack_pages_kernel(
    codes_ptr, largest_ptr, pages_ptr,
    LINES: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr,
    IS_FP8: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    strip = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, PADDED)
    inside = dims[None, :] < DIM
    codes_ptr += strip * (LINES * (DIM + 2))
    largest_ptr += strip * (LINES * (DIM + 2) // 2) + LINES * DIM // 2
    values = of_strip(codes_ptr, largest_ptr, row, dims, inside, DIM, ALIGNED, IS_FP8, PART)
    places = pages_ptr + strip * (LINES * DIM) + row[:, None] * DIM + dims[None, :]
    tl.store(places, values.to(pages_ptr.dtype.element_ty), mask=inside)


def row_tiles(block: int, dim: int) -> dict[str, int]:
    """How kernels cut the rows of a strip [2 B, D]: into tiles of ROWS, which 2 B is a multiple of."""
    lines = 2 * block
    return {
        "LINES": lines,
        "DIM": dim,
        "PADDED": int(triton.next_power_of_2(dim)),
        "ROWS": min(_ROWS, lines & -lines),
    }


def alignment(dim: int) -> int:
    """Bytes, a power of two and at most 16, that every row of codes begins by."""
    return min(16, dim & -dim)


def pack_pages(pages: Tensor, codes: torch.dtype) -> Tensor:
    """The op of `ref/kv_codes.py`, same arguments and result; pages without gaps."""
    count, heads, _, block, dim = pages.shape
    strips = torch.empty(count, heads, strip_bytes(block, dim), dtype=torch.uint8, device=pages.device)
    tiles = row_tiles(block, dim)
    if count:
        _pack_pages_kernel[(count * heads, tiles["LINES"] // tiles["ROWS"])](
            pages, strips, strips.view(torch.int16), **tiles, **code_options(codes), num_warps=4, **EXACT
        )
    return strips


def unpack_pages(strips: Tensor, codes: torch.dtype, pages: Tensor) -> None:
    """The op of `ref/kv_codes.py`, same arguments; both without gaps."""
    count, heads, _, block, dim = pages.shape
    tiles = row_tiles(block, dim)
    if count:
        _unpack_pages_kernel[(count * heads, tiles["LINES"] // tiles["ROWS"])](
            strips, strips.view(torch.int16), pages, **tiles, ALIGNED=alignment(dim), **code_options(codes), num_warps=4
        )
