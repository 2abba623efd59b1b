"""4-bit weights in groups along the rows: the layout, rounding into it, and its values.

qweight  int32 [N, K/8]      element k of row n in bits 4*(k % 8) of word k // 8
scales   bfloat16 [N, K/g]   g = 64 or 128
zeros    uint8 [N, K/g]      only in the zero-point form
value = (code - 8) * scale, or (code - zero) * scale; a symmetric scale may be negative
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_quant.packed import PackedWeight, describe
from salalocal_quant.packing import CODES_PER_WORD, PackedError, pack_int4, unpack_int4
from salalocal_quant.rounding import round_int4, round_int4_zero_point

SYMMETRIC_ZERO = 8


@dataclass(frozen=True)
class Int4Weight(PackedWeight):
    """A matrix of 4-bit codes; 4.125 bits per element in symmetric groups of 128."""

    @staticmethod
    def quantize(matrix: Tensor, group_size: int, dtype: torch.dtype, *, zero_point: bool = False) -> Int4Weight:
        """Rounds `matrix` to the nearest codes of scales with the least squared error.

        Args:
            matrix: [N, K] of a floating dtype, K a multiple of `group_size`.
            group_size: 64 or 128.
            dtype: of `rows` and `unpack`.
            zero_point: give each group a zero point of its own.

        Raises:
            PackedError: NaN or Inf in the matrix, or K no multiple of the group.
        """
        if zero_point:
            codes, scales, zeros = round_int4_zero_point(matrix, group_size)
            return Int4Weight(pack_int4(codes), scales, zeros, dtype)
        steps, scales = round_int4(matrix, group_size)
        return Int4Weight(pack_int4((steps + SYMMETRIC_ZERO).to(torch.uint8)), scales, None, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        if self.qweight.dtype != torch.int32 or self.qweight.ndim != 2:
            raise PackedError(f"qweight is {describe(self.qweight)}; int32 [N, K/8] is needed")
        return self.qweight.shape[0], self.qweight.shape[1] * CODES_PER_WORD

    def _steps(self, index: slice | Tensor) -> Tensor:
        codes = unpack_int4(self.qweight[index]).view(torch.int8)
        if self.zeros is None:
            return codes.sub_(SYMMETRIC_ZERO)
        zeros = self.zeros[index].view(torch.int8)
        return codes.reshape(*zeros.shape, -1).sub_(zeros[..., None]).reshape(codes.shape)
