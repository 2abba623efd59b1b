"""Cosines and sines of positions on a GPU in one launch. Bound by latency: a decode step needs one row.

Angles reach millions of radians. They are brought to a quarter turn in float64, where that is exact enough, and taken
by polynomials there (coefficients: Moshier, Cephes, sinf and cosf); the library's functions keep an array for it.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait
from salalocal_kernels.ref.rope import frequencies

_TWO_OVER_PI = tl.constexpr(0.6366197723675814)
_HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def _cos_sin(angle):
    """Of angles in float32, each to about 1e-7."""
    wide = angle.to(tl.float64)
    quarters = tl.floor(wide * _TWO_OVER_PI + 0.5)
    x = (wide - quarters * _HALF_PI).to(tl.float32)
    quarter = quarters.to(tl.int64) & 3
    y = x * x
    sine = x + x * y * (-1.6666654611e-1 + y * (8.3321608736e-3 + y * -1.9515295891e-4))
    cosine = 1.0 - 0.5 * y + y * y * (4.166664568298827e-2 + y * (-1.388731625493765e-3 + y * 2.443315711809948e-5))
    is_odd = (quarter & 1) == 1
    cos, sin = tl.where(is_odd, sine, cosine), tl.where(is_odd, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -cos, cos), tl.where(quarter >= 2, -sin, sin)


@triton.jit
def _rope_table_kernel(
    positions_ptr, frequencies_ptr, out_ptr, HALF: tl.constexpr, WIDTH: tl.constexpr, IS_EARLY: tl.constexpr
):
    let_next_begin(IS_EARLY)
    pair = tl.arange(0, WIDTH)
    inside = pair < HALF
    frequency = tl.load(frequencies_ptr + pair, mask=inside, other=0.0)
    wait(IS_EARLY)
    row = tl.program_id(0).to(tl.int64)
    angle = tl.load(positions_ptr + row).to(tl.float32) * frequency
    cos, sin = _cos_sin(angle)
    tl.store(out_ptr + row * (2 * HALF) + pair, cos, mask=inside)
    tl.store(out_ptr + row * (2 * HALF) + HALF + pair, sin, mask=inside)


def rope_table(positions: Tensor, dim: int, theta: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The op of `ref/rope.py`, same arguments and result, in float32; positions adjacent in memory."""
    assert dtype == torch.float32
    assert positions.stride(0) == 1
    out = torch.empty(positions.shape[0], dim, dtype=dtype, device=positions.device)
    if out.numel():
        half = dim // 2
        _rope_table_kernel[(positions.shape[0],)](
            positions, _frequencies(dim, theta, positions.device), out,
            HALF=half, WIDTH=triton.next_power_of_2(half), num_warps=1, **overlapped(positions.device),
        )  # fmt: skip
    return out


@functools.cache
def _frequencies(dim: int, theta: float, device: torch.device) -> Tensor:
    """[dim/2] float32, computed once."""
    return frequencies(dim, theta, device)
