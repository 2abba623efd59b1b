"""Compressed keys of one attention layer at both strides, grown as tokens arrive. Knows no scores and no blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal.sparse_config import SparseConfig


class CompressedKeys:
    """Means of keys every `stride` tokens; how many there are follows from the number of tokens.

    What lies past the count of a session's length is never read, so rewinding needs no work here. Forks share the
    storage until one of them writes.

    Args:
        kernel_size, stride: in tokens.
        kv_heads, head_dim, dtype, device: of the keys.
    """

    def __init__(
        self, kernel_size: int, stride: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.kernel_size = kernel_size
        self.stride = stride
        self._is_shared = False
        self._data = torch.empty(kv_heads, 0, head_dim, dtype=dtype, device=device)

    def count(self, length: int) -> int:
        """Complete windows among the first `length` tokens."""
        return max(0, (length - self.kernel_size) // self.stride + 1)

    def upto(self, length: int) -> Tensor:
        """[Hkv, n, D]: the compressed keys of the first `length` tokens."""
        return self._data[:, : self.count(length)]

    def room(self, count: int) -> Tensor:
        """Storage [Hkv, C, D] of this session alone for `count` windows and more, to be written to."""
        heads, capacity, dim = self._data.shape
        if count > capacity or self._is_shared:
            wanted = count + count // 8 + 64 if count > capacity else capacity
            grown = torch.empty(heads, wanted, dim, dtype=self._data.dtype, device=self._data.device)
            grown[:, :capacity] = self._data
            self._data, self._is_shared = grown, False
        return self._data

    @property
    def storage(self) -> Tensor:
        """[Hkv, C, D] as it is, perhaps shared; not to be written to."""
        return self._data

    def fork(self) -> CompressedKeys:
        """A copy that shares the storage until either writes."""
        heads, _, dim = self._data.shape
        copy = CompressedKeys(self.kernel_size, self.stride, heads, dim, self._data.dtype, self._data.device)
        copy._data = self._data
        self._is_shared = copy._is_shared = True
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self._data.nbytes


def fine_and_coarse(
    config: SparseConfig, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[CompressedKeys, CompressedKeys]:
    """The two strides of InfLLM-V2: kernel_stride, and four times as much for the normaliser."""
    fine = CompressedKeys(config.kernel_size, config.kernel_stride, kv_heads, head_dim, dtype, device)
    coarse = CompressedKeys(4 * config.kernel_size, 4 * config.kernel_stride, kv_heads, head_dim, dtype, device)
    return fine, coarse
