"""Compressed keys of InfLLM-V2: means over overlapping windows of keys."""

from __future__ import annotations

import torch
from torch import Tensor


def compress_keys(keys: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Averages every complete window of keys.

    Window j covers tokens [j * stride, j * stride + kernel_size); a window that does not fit is left out.

    Args:
        keys: [Hkv, T, D], the keys attention uses, any float dtype.
        kernel_size: tokens per window, a multiple of stride.
        stride: tokens between windows.

    Returns:
        [Hkv, n, D] with n = floor((T - kernel_size) / stride) + 1, or 0 where none fits; dtype of keys, the mean
        taken in at least float32.
    """
    heads, tokens, dim = keys.shape
    count = max(0, (tokens - kernel_size) // stride + 1)
    per_window = kernel_size // stride
    wide = torch.promote_types(keys.dtype, torch.float32)
    used = (count + per_window - 1) * stride if count else 0
    strips = keys[:, :used].to(wide).reshape(heads, -1, stride, dim).sum(2)
    windows = sum(
        (strips[:, shift : shift + count] for shift in range(per_window)),
        torch.zeros(heads, count, dim, dtype=wide, device=keys.device),
    )
    return (windows / kernel_size).to(keys.dtype)
