"""Packed weights that many tokens multiply in 8 bits on both sides. Knows one matrix, not which ones may.

The matrix stays packed as it is, and a few tokens multiply that. For many its rows become 8-bit codes under one scale
each, a slice at a time, the tokens are rounded to 8 bits under a scale each, and both scales meet the result. Scales of
groups would keep 4-bit codes as they are, at half the rate: their sums have to leave the matrix units. What rounding
under a row's scale adds is small beside what 4 bits have already cost (docs/performance.md has figures).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_kernels import plane_codes, plane_values, quantize_tokens, scaled_linear
from salalocal_kernels.ref.quantize_tokens import LARGEST
from salalocal_quant.planes_weight import PlanesWeight, scratch

# With fewer tokens the bytes of unpacking decide, which 8 bits hardly lower: nothing is rounded then.
MANY_TOKENS = 256


@dataclass(frozen=True)
class NarrowWeight(PlanesWeight):
    """A matrix [N, K] of packed codes in planes, multiplied in 8 bits where there are many tokens.

    Attributes:
        row_scales: [N] float32, of the 8-bit codes that the rows become.
        dtype: int8 or float8_e4m3fn.
    """

    row_scales: Tensor
    dtype: torch.dtype

    @staticmethod
    def narrow(weight: PlanesWeight, dtype: torch.dtype) -> NarrowWeight:
        """The same matrix, in the same memory."""
        largest = []
        for _, part in weight.slices(torch.float32):
            low, high = plane_values(part, torch.float32).aminmax(dim=1)
            largest.append(torch.maximum(-low, high))
        return NarrowWeight(weight.planes, torch.cat(largest) / LARGEST[dtype], dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.planes.nbytes + self.row_scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N], dtype of x."""
        return self.times(self.round(x), x.dtype) if is_many(x) else super().__call__(x)

    def part(self, taken: slice) -> NarrowWeight:
        """Some of the rows, in the same memory."""
        return NarrowWeight(super().part(taken).planes, self.row_scales[taken], self.dtype)

    def round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of x [..., K] for `times`: of one x the same for all matrices of one dtype."""
        codes, scales = quantize_tokens(x.reshape(-1, x.shape[-1]), self.dtype)
        return codes.view(x.shape), scales

    def times(self, rounded: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """What `round` gave of x [..., K] -> x W^T [..., N] in `dtype`."""
        codes, scales = rounded
        flat = codes.view(-1, codes.shape[-1])
        parts = []
        for rows, part in self.slices(self.dtype):
            row_scales = self.row_scales[rows]
            weight = plane_codes(part, row_scales, self.dtype, scratch(part, self.dtype))
            parts.append(scaled_linear(flat, scales, weight, row_scales, dtype))
        product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return product.view(*codes.shape[:-1], product.shape[-1])


def is_many(x: Tensor) -> bool:
    """Whether x [..., K] has so many rows that products in 8 bits pay."""
    return x.numel() >= MANY_TOKENS * x.shape[-1]
