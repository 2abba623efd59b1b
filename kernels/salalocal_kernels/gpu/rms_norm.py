"""Root-mean-square norm on a GPU: rows that a program reads once. Adds a branch to them first where asked.

Bound by bytes for a chunk of tokens and by latency for one token: one program reads 16 KiB then, so a row of 4096 gets
16 warps, two 16-byte loads a thread and one exchange between warps. Short rows (a norm per head) share a program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait

# Numbers of a program that takes several rows, and warps of a program that takes one of several rows or the only one.
_NUMBERS = 2048
_WARPS_MANY = 8
_WARPS_ONE = 16
# Neighbouring numbers of a thread: a load of x. Were they those of a load of 16-bit numbers, all of a wider x would go
# through shared memory on its way back.
_RUN_BYTES = 16


@triton.jit
def _rms_norm_kernel(
    x_ptr, branch_ptr, weight_ptr, out_ptr, rows_total, columns, stride_xt, stride_xc, stride_bt, stride_bc,
    RATIO: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr,
    ADDS: tl.constexpr, WIDE: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    at = tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), RUN), RUN)[None, :]
    inside = (rows < rows_total) & (at < columns)
    weight = tl.load(weight_ptr + at, mask=at < columns, other=0.0)
    wait(IS_EARLY)
    x = tl.load(x_ptr + rows * stride_xt + at * stride_xc, mask=inside, other=0.0).to(WIDE)
    if ADDS:
        x += tl.load(branch_ptr + rows * stride_bt + at * stride_bc, mask=inside, other=0.0).to(WIDE) * RATIO
        tl.store(x_ptr + rows * stride_xt + at * stride_xc, x.to(x_ptr.dtype.element_ty), mask=inside)
    mean = tl.sum(x * x, 1) / columns
    normalized = (x * (1.0 / tl.sqrt(mean + EPS))[:, None]).to(weight.dtype)
    # Rounded before it meets the weight and once more after, as the definition does in the weight's dtype.
    y = normalized.to(WIDE) * weight.to(WIDE)
    tl.store(out_ptr + rows * columns + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The op of `ref/rms_norm.py`, same arguments and result."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    _launch(rows, None, 0.0, weight, eps, out)
    return out


def add_rms_norm(x: Tensor, branch: Tensor, ratio: float, weight: Tensor, eps: float) -> Tensor:
    """The op of `ref/add_rms_norm.py`, same arguments and result; the leading dimensions of x can be taken as one."""
    columns = x.shape[-1]
    out = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    _launch(x.view(-1, columns), branch.reshape(-1, columns), ratio, weight, eps, out)
    return out


def _launch(x: Tensor, branch: Tensor | None, ratio: float, weight: Tensor, eps: float, out: Tensor) -> None:
    rows, columns = x.shape
    other = x if branch is None else branch
    if not out.numel():
        return
    block = int(triton.next_power_of_2(columns))
    together = min(max(1, _NUMBERS // block), int(triton.next_power_of_2(rows)))
    warps = max(1, min(_WARPS_ONE if rows == 1 else _WARPS_MANY, together * block // 256))
    _rms_norm_kernel[(triton.cdiv(rows, together),)](
        x, other, weight.contiguous(), out, rows, columns, x.stride(0), x.stride(1), other.stride(0), other.stride(1),
        RATIO=ratio, EPS=eps, ROWS=together, BLOCK=block, RUN=_RUN_BYTES // x.element_size(), ADDS=branch is not None,
        WIDE=tl.float64 if x.dtype == torch.float64 else tl.float32, num_warps=warps, **overlapped(x.device),
    )  # fmt: skip
