"""Weights kept as plain tensors: the simplest weight format. Knows one matrix, not the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from salalocal_kernels import gather_rows, linear


class Weight(Protocol):
    """One weight matrix [N, K] in some format."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N], dtype of x."""

    def part(self, taken: slice) -> Weight:
        """Some of the rows, in the same memory."""


class Embedding(Weight, Protocol):
    """A matrix whose rows are looked up."""

    def rows(self, index: Tensor) -> Tensor:
        """Rows [T, K] for index int64 [T], in the dtype of the activations."""

    def embed(self, ids: Tensor, factor: float) -> Tensor:
        """`rows` times `factor`, in the wider of their dtype and float32: the beginning of a residual stream."""

    def pinned(self) -> Embedding:
        """The same matrix in page-locked host memory."""


@dataclass(frozen=True)
class DenseWeight:
    """A matrix in the dtype of the activations.

    Attributes:
        data: [N, K].
    """

    data: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.data.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N]."""
        return linear(x, self.data)

    def part(self, taken: slice) -> DenseWeight:
        """Some of the rows, in the same memory."""
        return DenseWeight(self.data[taken])

    def rows(self, index: Tensor) -> Tensor:
        """Rows [T, K] for index int64 [T]."""
        return self.data[index]

    def embed(self, ids: Tensor, factor: float) -> Tensor:
        """Rows [T, K] for ids int64 [T], times `factor`, at least float32."""
        return gather_rows(self.data, None, ids, factor, self.data.dtype)

    def pinned(self) -> DenseWeight:
        """The same matrix in page-locked host memory."""
        return DenseWeight(self.data.pin_memory())
