"""SiLU and its product in one pass on a GPU, to plain numbers or to 8-bit codes of rows.

Bound by bytes: 6 for a bf16 number, where two launches move 10; 5 to codes, where a third would move 3 more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.quantize_tokens import rounded
from salalocal_kernels.ref.quantize_tokens import LARGEST

# A thread takes 16 numbers: two loads of 16 bytes from each half in 16 bits.
_NUMBERS = 2048
_WARPS = 4


@triton.jit
def _silu_mul_kernel(gate_ptr, up_ptr, out_ptr, columns, stride_gt, stride_ut, stride_ot, BLOCK: tl.constexpr):
    runs = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // runs).to(tl.int64)
    at = tl.program_id(0) % runs * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    gate = tl.load(gate_ptr + row * stride_gt + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_ut + at, mask=inside, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * stride_ot + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate: Tensor, up: Tensor, out: Tensor | None = None) -> Tensor:
    """The op of `ref/silu_mul.py`, same arguments and result, for dtypes up to float32; rounds once, at the end."""
    assert gate.shape == up.shape
    assert gate.stride(1) == up.stride(1) == 1
    rows, columns = gate.shape
    if out is None:
        out = torch.empty(rows, columns, dtype=gate.dtype, device=gate.device)
    assert out.shape == gate.shape
    assert out.stride(1) == 1
    if out.numel():
        block = min(_NUMBERS, int(triton.next_power_of_2(columns)))
        _silu_mul_kernel[(rows * triton.cdiv(columns, block),)](
            gate, up, out, columns, gate.stride(0), up.stride(0), out.stride(0), BLOCK=block, num_warps=_WARPS
        )
    return out


@triton.jit
def _silu_mul_codes_kernel(
    gate_ptr, up_ptr, codes_ptr, scales_ptr, columns, stride_gt, stride_ut,
    LARGEST: tl.constexpr, ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    gate = tl.load(gate_ptr + row * stride_gt + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * stride_ut + at, mask=inside, other=0.0).to(tl.float32)
    steps, scale = rounded(gate / (1.0 + tl.exp(-gate)) * up, LARGEST, ROUNDS)
    tl.store(codes_ptr + row * columns + at, steps.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scales_ptr + row, scale)


def silu_mul_codes(gate: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The op of `ref/silu_mul.py`, same arguments and result, for dtypes up to float32; fp8 on sm_89 and later."""
    assert gate.shape == up.shape
    assert gate.stride(1) == up.stride(1) == 1
    rows, columns = gate.shape
    codes = torch.empty(rows, columns, dtype=dtype, device=gate.device)
    scales = torch.empty(rows, dtype=torch.float32, device=gate.device)
    if not codes.numel():
        return codes, scales.fill_(0.0)
    block = int(triton.next_power_of_2(columns))
    _silu_mul_codes_kernel[(rows,)](
        gate, up, codes, scales, columns, gate.stride(0), up.stride(0),
        LARGEST=LARGEST[dtype], ROUNDS=dtype == torch.int8, BLOCK=block, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return codes, scales
