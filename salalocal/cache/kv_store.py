"""K and V of the attention layers in pages, shared by forked sessions. Knows positions, not what tokens mean.

One page number stands for the same block in every layer, so one page table serves all of them.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from salalocal.cache.page_table import PagePool, PageTable

_ALIGNMENT = 64


class KVStore:
    """Storage behind a pool of pages, one tensor per layer.

    Args:
        layers: number of attention layers.
        kv_heads: K/V heads.
        head_dim: channels per head.
        block_size: tokens per page.
        dtype: of K and V.
        device: where they live.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pool = PagePool()
        self.block_size = block_size
        self.device = device
        self._shape = (kv_heads, 2, 0, block_size, head_dim)
        self._data = [torch.zeros(self._shape, dtype=dtype, device=device) for _ in range(layers)]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        kv_heads, two, _, block, dim = self._shape
        return len(self._data) * kv_heads * two * block * dim * (self._data[0].element_size() if self._data else 0)

    @property
    def capacity(self) -> int:
        """Pages there is storage for in every layer."""
        return min((data.shape[2] for data in self._data), default=self.pool.size)

    def reserve(self, pages: int) -> None:
        """Makes storage for at least `pages` pages; where memory runs out half-way, what is stored stays intact."""
        for index, old in enumerate(self._data):
            if old.shape[2] >= pages:
                continue
            # Zeros, not whatever memory held: the tail of a block is multiplied by masked weights of 0, and 0 x NaN
            # would be NaN.
            grown = _zeros((*old.shape[:2], pages, *old.shape[3:]), old.dtype, old.device)
            grown[:, :, : old.shape[2]] = old
            self._data[index] = grown

    @property
    def storage(self) -> tuple[Tensor, ...]:
        """What the pages of each layer are views of; the same objects for as long as nothing has moved."""
        return tuple(self._data)

    def pages(self, layer: int) -> Tensor:
        """[P, Hkv, 2, B, D], a view. Strides keep the pages of one head adjacent, so that a run of pages is one
        strip of keys without a copy."""
        return self._data[layer].permute(2, 0, 1, 3, 4)

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in every layer."""
        for data in self._data:
            data[:, :, target] = data[:, :, source]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the host those of the operating system, which take neither time nor memory until they are used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes every one of them, which takes a third of the time of restoring a session. Aligned as torch's
    # own memory is, so that products take the same paths.
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(nbytes + _ALIGNMENT, dtype=np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[begin : begin + nbytes]).view(dtype).view(shape)


class PageStore(Protocol):
    """Storage behind a pool of pages, wherever it is."""

    pool: PagePool
    block_size: int
    device: torch.device

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""

    @property
    def capacity(self) -> int:
        """Pages there is storage for."""

    @property
    def storage(self) -> tuple[Tensor, ...]:
        """What a recorded step refers to; the same objects for as long as nothing has moved."""

    def reserve(self, pages: int) -> None:
        """Makes storage for at least `pages` pages."""

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in every layer."""


class PagedCache:
    """Which pages one session's blocks are in.

    `extend` makes room; then every layer writes its tokens; the session moves its length when all have.

    Args:
        store: shared with every fork.
        table: this session's pages; None for a session that holds nothing.
    """

    def __init__(self, store: PageStore, table: PageTable | None = None) -> None:
        self._pages = store
        self._table = table or PageTable(store.pool, store.block_size)
        self._index = _on_device(self._table.pages, store.device)

    def reserve(self, length: int, new_length: int) -> None:
        """Storage for tokens [length, new_length), so that coming calls of `extend` need not grow it."""
        needed = self._pages.pool.size_after(self._table.lacking(length, new_length))
        # An eighth more than needed, so that decoding does not grow the storage at every block.
        if needed > self._pages.capacity:
            self._pages.reserve(needed + needed // 8)

    def extend(self, length: int, new_length: int) -> None:
        """Room for tokens [length, new_length). Storage first, table after: a failure leaves tokens as they were."""
        self.reserve(length, new_length)
        if self._table.lacking(length, new_length):
            # Blocks before the one written to keep their pages. Should the rest fail, the next call sees that it lacks.
            self._index = self._index[: length // self.block_size]
        self._table.extend(length, new_length, self._pages.copy_page)
        known = len(self._index)
        if known != len(self._table.pages):
            self._index = torch.cat([self._index, _on_device(self._table.pages[known:], self._pages.device)])

    def make_room(self, length: int) -> None:
        """Room for `length` tokens in a cache of nothing, which are not going to be read but filled in."""
        self.extend(0, length)

    @property
    def page_table(self) -> Tensor:
        """int64 [N]: the page of each block, the same in every layer; another object once it has changed."""
        return self._index

    @property
    def storage(self) -> tuple[Tensor, ...]:
        """K and V of all layers; the same objects for as long as nothing has moved."""
        return self._pages.storage

    @property
    def block_size(self) -> int:
        """Tokens per page."""
        return self._pages.block_size

    def truncate(self, length: int) -> None:
        """Forgets tokens from `length` on."""
        self._table.truncate(length)
        self._index = self._index[: len(self._table.pages)]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage all forks share."""
        return self._pages.capacity * self._pages.page_bytes


def _on_device(numbers: list[int], device: torch.device) -> Tensor:
    """int64 [n]. What a GPU is doing is not waited for: at every block of an answer that is the step before."""
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


class KVCache(PagedCache):
    """One session's K and V on the device.

    Args:
        store: shared with every fork.
        table: as above.
    """

    def __init__(self, store: KVStore, table: PageTable | None = None) -> None:
        super().__init__(store, table)
        self._store = store

    def write(self, layer: int, position: int, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [T, Hkv, D] of tokens from `position` on."""
        pages = self._store.pages(layer)
        block = self._store.block_size
        positions = torch.arange(position, position + keys.shape[0], device=pages.device)
        page, offset = self._index[positions // block], positions % block
        pages[page, :, 0, offset] = keys
        pages[page, :, 1, offset] = values

    def context(self, layer: int, length: int) -> Tensor:
        """Pages [N, Hkv, 2, B, D] of tokens [0, length) in order; a view where they lie in a row."""
        last = -(-length // self._store.block_size)
        pages, numbers = self._store.pages(layer), self._table.pages[:last]
        if numbers and numbers == list(range(numbers[0], numbers[0] + last)):
            return pages[numbers[0] : numbers[0] + last]
        return pages[self._index[:last]]

    def span(self, layer: int, start: int, stop: int) -> Tensor:
        """[Hkv, 2, T, D]: keys and values of tokens [start, stop), `start` at the beginning of a block.

        A view where the pages lie in a row, as they do in a cache that has only ever grown; else a copy. Either way
        the last two dimensions lie in a row.
        """
        block = self._store.block_size
        assert not start % block
        data, numbers = self._store.storage[layer], self._table.pages[start // block : -(-stop // block)]
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
            pages = data[:, :, numbers[0] : numbers[0] + len(numbers)]
        else:
            pages = data[:, :, self._index[start // block : -(-stop // block)]]
        return pages.flatten(2, 3)[:, :, : stop - start]

    def pages(self, layer: int) -> Tensor:
        """All pages [P, Hkv, 2, B, D] of the store."""
        return self._store.pages(layer)

    def fork(self) -> KVCache:
        """A cache over the same pages; whoever writes first copies the last block."""
        return KVCache(self._store, self._table.fork())
