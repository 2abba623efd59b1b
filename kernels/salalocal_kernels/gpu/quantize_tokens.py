"""Rows rounded to 8 bits on a GPU: a program for a row, which it reads once. Bound by bytes: 3 for a bf16 number."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.ref.quantize_tokens import LARGEST

# Adding and subtracting 1.5 * 2^23 leaves the nearest integer, ties to even, of anything below 2^22.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def rounded(x, LARGEST: tl.constexpr, ROUNDS: tl.constexpr):
    """Steps of a row x in float32, whole numbers with ROUNDS, and their scale."""
    largest = tl.max(tl.abs(x), 0)
    steps = x * tl.where(largest > 0, LARGEST / largest, 0.0)
    if ROUNDS:
        steps = (steps + _ROUND) - _ROUND
    return steps, largest / LARGEST


@triton.jit
def _quantize_tokens_kernel(
    x_ptr, codes_ptr, scales_ptr, columns, stride_xt, stride_xc,
    LARGEST: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row * stride_xt + at * stride_xc, mask=inside, other=0.0).to(tl.float32)
    steps, scale = rounded(x, LARGEST, ROUNDS)
    tl.store(codes_ptr + row * columns + at, steps.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + row, scale)


def quantize_tokens(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The op of `ref/quantize_tokens.py`, same arguments and result; fp8 on sm_89 and later."""
    rows, columns = x.shape
    codes = torch.empty(rows, columns, dtype=dtype, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    if not codes.numel():
        return codes, scales.fill_(0.0)
    block = int(triton.next_power_of_2(columns))
    _quantize_tokens_kernel[(rows,)](
        x, codes, scales, columns, x.stride(0), x.stride(1),
        LARGEST=LARGEST[dtype], ROUNDS=dtype == torch.int8, BLOCK=block, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return codes, scales
