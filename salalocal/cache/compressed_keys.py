"""Compressed keys of one attention layer at both strides, grown as tokens arrive. Knows no scores and no blocks."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.sparse_config import SparseConfig


@dataclass(eq=False)
class _Loan:
    """Storage that forks read, as it was when they were made."""

    data: Tensor


class CompressedKeys:
    """Means of keys every `stride` tokens; how many there are follows from the number of tokens.

    What lies past the count of a session's length is never read, so rewinding needs no work here. Forks share the
    storage until one of them writes; whoever was forked keeps it where it is, as its recorded steps name its address.

    Args:
        kernel_size, stride: in tokens.
        kv_heads, head_dim, dtype, device: of the keys.
    """

    def __init__(
        self, kernel_size: int, stride: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self._data = torch.empty(kv_heads, 0, head_dim, dtype=dtype, device=device)
        # What forks of this one read, for as long as there are any; what this one reads as a fork.
        self._lent: weakref.ref[_Loan] | None = None
        self._borrowed: _Loan | None = None

    def count(self, length: int) -> int:
        """Complete windows among the first `length` tokens."""
        return max(0, (length - self.kernel_size) // self.stride + 1)

    def upto(self, length: int) -> Tensor:
        """[Hkv, n, D]: the compressed keys of the first `length` tokens."""
        return self.storage[:, : self.count(length)]

    def room(self, count: int) -> Tensor:
        """Storage [Hkv, C, D] of this session alone for `count` windows and more, to be written to."""
        heads, capacity, dim = self.storage.shape
        if count > capacity or self._borrowed is not None:
            wanted = count + count // 8 + 64 if count > capacity else capacity
            grown = torch.empty(heads, wanted, dim, dtype=self._data.dtype, device=self._data.device)
            grown[:, :capacity] = self.storage
            self._data, self._borrowed = grown, None
        elif self._lent is not None and (loan := self._lent()) is not None:
            loan.data = self._data.clone()
        self._lent = None
        return self._data

    @property
    def storage(self) -> Tensor:
        """[Hkv, C, D] as it is, perhaps shared; not to be written to."""
        return self._data if self._borrowed is None else self._borrowed.data

    def fork(self) -> CompressedKeys:
        """A copy that shares the storage until either writes."""
        heads, _, dim = self._data.shape
        copy = CompressedKeys(self.kernel_size, self.stride, heads, dim, self._data.dtype, self._data.device)
        loan = self._borrowed
        if loan is None:
            loan = (self._lent() if self._lent is not None else None) or _Loan(self._data)
            self._lent = weakref.ref(loan)
        copy._borrowed = loan
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self.storage.nbytes


def fine_and_coarse(
    config: SparseConfig, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[CompressedKeys, CompressedKeys]:
    """The two strides of InfLLM-V2: kernel_stride, and four times as much for the normaliser."""
    fine = CompressedKeys(config.kernel_size, config.kernel_stride, kv_heads, head_dim, dtype, device)
    coarse = CompressedKeys(4 * config.kernel_size, 4 * config.kernel_stride, kv_heads, head_dim, dtype, device)
    return fine, coarse
