"""What packed weights have in common: dequantising and multiplying in slices of rows. Knows no layout of codes.

Plain dequantise-and-multiply: every call turns all rows into the activations' dtype, a slice at a time, and multiplies
with `linear`. Integer steps and bfloat16 scales are exact in float32, float64 and bfloat16 and their product is rounded
once, so a matrix unpacked in advance holds the same values; products differ from its products by no more than the
order of their sums, and only where a matrix takes several slices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from salalocal_kernels import linear
from salalocal_quant.dense import DenseWeight
from salalocal_quant.packing import PackedError

GROUP_SIZES = (64, 128)
# What dequantising may hold at once beside the packed matrix and the product. A CPU works fastest out of its caches
# (64 MiB takes 1.2 to 3 times as long on a 4096 x 4096 matrix); a GPU wants large products.
SCRATCH_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
# Bytes per element on the way to a value: halves of bytes, whole codes, steps from the zero point.
_STEP_BYTES = 3


@dataclass(frozen=True)
class PackedWeight(ABC):
    """A matrix [N, K]: an integer step from zero per element, times a scale per group of elements along the row.

    Attributes:
        qweight: codes, as the format lays them out; contiguous.
        scales: [N, K/group_size] bfloat16.
        zeros: [N, K/group_size] uint8; None where the matrix is symmetric.
        dtype: of the values that `rows` and `unpack` give.

    Raises:
        PackedError: a tensor has the wrong dtype or shape.
    """

    qweight: Tensor
    scales: Tensor
    zeros: Tensor | None
    dtype: torch.dtype

    def __post_init__(self) -> None:
        rows, columns = self.shape
        if self.scales.dtype != torch.bfloat16 or columns not in (self.scales.shape[-1] * g for g in GROUP_SIZES):
            raise PackedError(
                f"scales are {describe(self.scales)}; bfloat16 for groups of {' or '.join(map(str, GROUP_SIZES))} "
                f"of {columns} columns are needed"
            )
        for name, tensor in (("scales", self.scales), ("zeros", self.zeros)):
            if tensor is not None and tensor.shape != (rows, self.scales.shape[-1]):
                raise PackedError(f"{name} are {describe(tensor)}; [{rows}, {self.scales.shape[-1]}] are needed")
        if self.zeros is not None and self.zeros.dtype != torch.uint8:
            raise PackedError(f"zeros are {describe(self.zeros)}; uint8 is needed")

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N, K). Raises PackedError where `qweight` is not of the format's dtype."""

    @abstractmethod
    def _steps(self, index: slice | Tensor) -> Tensor:
        """Steps from zero [rows, K] int8 of the rows `index` takes."""

    @property
    def group_size(self) -> int:
        """Elements along a row that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What a file stores, by the suffix of the tensor's name: qweight, scales, and zeros where there are any."""
        stored = {"qweight": self.qweight, "scales": self.scales}
        return stored if self.zeros is None else {**stored, "zeros": self.zeros}

    def check_values(self) -> None:
        """Raises PackedError where a value would not be a finite float32, or a code is not of the format."""
        if not torch.isfinite(self.scales.float() * 128).all():
            raise PackedError("scales hold NaN, Inf or numbers beyond float32")
        if self.zeros is not None and self.zeros.numel() and int(self.zeros.max()) > 15:
            raise PackedError("zeros hold numbers above 15")

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N], dtype of x; the matrix is dequantised to it in slices of rows."""
        parts = [linear(x, self._values(rows, x.dtype)) for rows in self._row_slices(x.dtype)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def part(self, taken: slice) -> Self:
        """Some of the rows, in the same memory."""
        zeros = None if self.zeros is None else self.zeros[taken]
        return replace(self, qweight=self.qweight[taken], scales=self.scales[taken], zeros=zeros)

    def rows(self, index: Tensor) -> Tensor:
        """Rows [T, K] for index int64 [T], in `dtype`."""
        return self._values(index, self.dtype)

    def embed(self, ids: Tensor, factor: float) -> Tensor:
        """Rows [T, K] for ids int64 [T], times `factor`, at least float32."""
        return self.rows(ids).to(torch.promote_types(self.dtype, torch.float32)) * factor

    def to(self, device: torch.device) -> Self:
        """The same matrix on `device`."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, qweight=self.qweight.to(device), scales=self.scales.to(device), zeros=zeros)

    def pinned(self) -> Self:
        """The same matrix in page-locked host memory."""
        zeros = None if self.zeros is None else self.zeros.pin_memory()
        return replace(self, qweight=self.qweight.pin_memory(), scales=self.scales.pin_memory(), zeros=zeros)

    def unpack(self) -> DenseWeight:
        """The same matrix as plain numbers in `dtype`."""
        dense = torch.empty(self.shape, dtype=self.dtype, device=self.qweight.device)
        for rows in self._row_slices(self.dtype):
            dense[rows] = self._values(rows, self.dtype)
        return DenseWeight(dense)

    def squared_error(self, matrix: Tensor) -> tuple[float, float]:
        """Sum of squared differences from `matrix` [N, K] of any floating dtype, and the sum of its squares."""
        error = norm = 0.0
        for rows in self._row_slices(torch.float64):
            wanted = matrix[rows].to(torch.float64)
            error += float((self._values(rows, torch.float64) - wanted).square_().sum())
            norm += float(wanted.square_().sum())
        return error, norm

    def _row_slices(self, dtype: torch.dtype) -> Iterator[slice]:
        rows, columns = self.shape
        scratch = SCRATCH_BYTES[self.qweight.device.type]
        step = max(1, scratch // (max(1, columns) * (dtype.itemsize + _STEP_BYTES)))
        return (slice(start, start + step) for start in range(0, max(1, rows), step))

    def _values(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        scales = self.scales[index].to(dtype)
        steps = self._steps(index)
        groups = steps.to(dtype).reshape(*scales.shape, -1).mul_(scales[..., None])
        return groups.reshape(steps.shape)


def describe(tensor: Tensor) -> str:
    """Dtype and shape of a tensor for an error, as 'int8 [512, 64]'."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
