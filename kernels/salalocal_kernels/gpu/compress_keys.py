"""Compressed keys on a GPU: means of a run of keys, and the incremental form that reads pages and writes in place.

Bound by bytes: every key is read twice per level, the second time from a cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.target import INTERPRETED

# Tokens of a window that are added at once.
_ROWS = 32


@triton.jit
def _compress_keys_kernel(
    keys_ptr, out_ptr,
    stride_kh, stride_kt, stride_kd, stride_oh, stride_on,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DIM: tl.constexpr, DIM_PADDED: tl.constexpr, ROWS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, DIM_PADDED)
    total = tl.zeros([DIM_PADDED], WIDE)
    for start in range(0, KERNEL, ROWS):
        rows = start + tl.arange(0, ROWS)
        token = window * STRIDE + rows
        places = keys_ptr + kv_head * stride_kh + token[:, None] * stride_kt + dims[None, :] * stride_kd
        keys = tl.load(places, mask=(rows < KERNEL)[:, None] & (dims < DIM)[None, :], other=0.0)
        total += tl.sum(keys.to(WIDE), 0)
    mean = (total / KERNEL).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + kv_head * stride_oh + window * stride_on + dims, mean, mask=dims < DIM)


def compress_keys(keys: Tensor, kernel_size: int, stride: int) -> Tensor:
    """The op of `ref/compress_keys.py`, same arguments and result; any strides."""
    kv_heads, tokens, dim = keys.shape
    count = max(0, (tokens - kernel_size) // stride + 1)
    out = torch.empty(kv_heads, count, dim, dtype=keys.dtype, device=keys.device)
    if out.numel() == 0:
        return out
    _compress_keys_kernel[(count, kv_heads)](
        keys, out,
        keys.stride(0), keys.stride(1), keys.stride(2), out.stride(0), out.stride(1),
        KERNEL=kernel_size, STRIDE=stride, DIM=dim, DIM_PADDED=triton.next_power_of_2(dim),
        ROWS=min(_ROWS, triton.next_power_of_2(kernel_size)),
        WIDE=tl.float64 if keys.dtype == torch.float64 else tl.float32,
        num_warps=1 if INTERPRETED else 2,
    )  # fmt: skip
    return out
