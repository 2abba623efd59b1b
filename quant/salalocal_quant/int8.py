"""8-bit weights in groups along the rows: the layout, rounding into it, and its values.

    qweight  int8 [N, K]         -127..127
    scales   bfloat16 [N, K/g]   g = 64 or 128
    value = code * scale

Groups rather than one scale per row: on trained matrices they leave a quarter to a half less rms error (the figures are
in docs/quantization.md) for 1.6 % more bytes at 128, and kernels see one shape of scales for both formats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_kernels import gather_rows
from salalocal_quant.packed import PackedWeight, describe
from salalocal_quant.packing import PackedError
from salalocal_quant.rounding import round_int8


@dataclass(frozen=True)
class Int8Weight(PackedWeight):
    """A matrix of 8-bit codes; always symmetric."""

    @staticmethod
    def quantize(matrix: Tensor, group_size: int, dtype: torch.dtype) -> Int8Weight:
        """Rounds `matrix` [N, K] as `Int4Weight.quantize` does, to 255 steps."""
        codes, scales = round_int8(matrix, group_size)
        return Int8Weight(codes, scales, None, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        if self.qweight.dtype != torch.int8 or self.qweight.ndim != 2:
            raise PackedError(f"qweight is {describe(self.qweight)}; int8 [N, K] is needed")
        return self.qweight.shape[0], self.qweight.shape[1]

    def check_values(self) -> None:
        """Raises PackedError where a value would not be finite, or a code is -128."""
        super().check_values()
        if self.qweight.numel() and int(self.qweight.min()) < -127:
            raise PackedError("qweight holds -128; codes are -127 to 127")

    def embed(self, ids: Tensor, factor: float) -> Tensor:
        """Rows [T, K] for ids int64 [T], times `factor`, at least float32."""
        return gather_rows(self.qweight, self.scales, ids, factor, self.dtype)

    def _steps(self, index: slice | Tensor) -> Tensor:
        return self.qweight[index]
