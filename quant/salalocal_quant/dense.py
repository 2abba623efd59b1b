"""Weights kept as plain tensors: the simplest weight format. Knows one matrix, not the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from salalocal_kernels import linear


class Weight(Protocol):
    """One weight matrix [N, K] in some format."""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N], dtype of x."""

    def rows(self, index: Tensor) -> Tensor:
        """Rows [T, K] for index int64 [T]."""


@dataclass(frozen=True)
class DenseWeight:
    """A matrix in the dtype of the activations.

    Attributes:
        data: [N, K].
    """

    data: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.data.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N]."""
        return linear(x, self.data)

    def rows(self, index: Tensor) -> Tensor:
        """Rows [T, K] for index int64 [T]."""
        return self.data[index]
