"""Packed matrices and other inputs of the tests on a GPU, and their measure of error. Knows no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal_kernels.ref.planes import Planes

# Name of a format -> bits, group size, zero points.
FORMATS = {
    "int4-128": (4, 128, False), "int4-64": (4, 64, False), "int4-128-zeros": (4, 128, True),
    "int4-64-zeros": (4, 64, True), "int8-128": (8, 128, False), "int8-64": (8, 64, False),
}  # fmt: skip


def packed(rows: int, columns: int, form: str, device: str = "cpu", seed: int = 0) -> Planes:
    """Random codes under random scales of either sign; on the meta device, a matrix without numbers."""
    bits, group_size, has_zeros = FORMATS[form]
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    if device == "meta":
        return Planes(
            torch.empty(rows, columns * bits // 32, dtype=torch.int32, device=device),
            torch.empty(rows, groups, dtype=torch.bfloat16, device=device),
            torch.empty(rows, groups, dtype=torch.uint8, device=device) if has_zeros else None,
            bits, group_size,
        )  # fmt: skip
    words = torch.randint(-(2**31), 2**31, (rows, columns * bits // 32), generator=generator).to(torch.int32)
    scales = torch.randn(rows, groups, generator=generator).bfloat16()
    zeros = torch.randint(0, 16, (rows, groups), generator=generator).to(torch.uint8) if has_zeros else None
    return Planes(
        words.to(device), scales.to(device), None if zeros is None else zeros.to(device), bits, group_size
    )  # fmt: skip


def numbers(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def error(found: Tensor, exact: Tensor) -> float:
    """RMS of the difference over RMS of the exact values; NaN stays NaN."""
    assert found.shape == exact.shape
    return float((found.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
