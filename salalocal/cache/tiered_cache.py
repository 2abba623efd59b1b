"""One session's K and V where all of it is in host memory: its pages, and what is saved of them. Knows no attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from salalocal.cache.kv_store import PagedCache
from salalocal.cache.page_table import PageTable
from salalocal.cache.tiered_store import TieredStore
from salalocal_kernels import pack_pages, unpack_pages


class TieredCache(PagedCache):
    """One session's K and V.

    Args:
        store: shared with every session of the engine.
        table: this session's pages; None for a session that holds nothing.
    """

    def __init__(self, store: TieredStore, table: PageTable | None = None) -> None:
        super().__init__(store, table)
        self.store = store
        self._numbers: np.ndarray | None = None

    def reserve(self, length: int, new_length: int) -> None:
        """Host memory for tokens [length, new_length). It never moves, so no more than that."""
        self.store.reserve(self.store.pool.size_after(self._table.lacking(length, new_length)))

    def extend(self, length: int, new_length: int) -> None:
        """Room for tokens [length, new_length), as in `PagedCache`; a new round of the store begins.

        Slots forget the pages of a chunk, which is written to the host only, and pages that are new to this session.
        One token goes to both.
        """
        is_chunk = new_length - length > 1
        pages = self._take(length, new_length, is_chunk)
        self.store.begin_round(pages if is_chunk else 0)

    def make_room(self, length: int) -> None:
        """As in `PagedCache`; no round begins, and nothing is taken on the device."""
        self._take(0, length, is_chunk=True)

    def _take(self, length: int, new_length: int, is_chunk: bool) -> int:
        """Returns how many pages the new tokens are in."""
        first = length // self.block_size
        before = self._table.pages[first:]
        super().extend(length, new_length)
        after = self._table.pages[first:]
        self.store.forget(
            [page for at, page in enumerate(after) if is_chunk or at >= len(before) or before[at] != page]
        )
        self._numbers = None
        return len(after)

    @property
    def numbers(self) -> np.ndarray:
        """[N] int64: the page of each block, as `page_table` has it on the device."""
        if self._numbers is None:
            self._numbers = np.array(self._table.pages, dtype=np.int64)
        return self._numbers

    def span(self, layer: int, start: int, stop: int) -> Tensor:
        """[Hkv, 2, T, D]: a copy of keys and values of tokens [start, stop), `start` at the beginning of a block."""
        block, host = self.block_size, self.store.host.layer(layer)
        assert not start % block
        self.store.settle()
        pages = [host.page(number) for number in self._table.pages[start // block : -(-stop // block)]]
        if host.codes is not None:
            found = torch.empty(len(pages), *self.store.page_shape, dtype=self.store.dtype)
            unpack_pages(torch.stack(pages), host.codes, found)
            pages = list(found)
        return torch.stack(pages, dim=2).flatten(2, 3)[:, :, : stop - start]

    def keep_span(self, layer: int, start: int, values: Tensor) -> None:
        """Stores values [Hkv, 2, T, D] of tokens from `start` on, at the beginning of a block, after `extend`.

        Where the host keeps 8 bits they are rounded, which changes nothing in what was kept so before.
        """
        block, host = self.block_size, self.store.host.layer(layer)
        self.store.settle()
        if host.codes is not None:
            heads, two, tokens, dim = values.shape
            whole = torch.nn.functional.pad(values, (0, 0, 0, -tokens % block)).view(heads, two, -1, block, dim)
            strips = pack_pages(whole.permute(2, 0, 1, 3, 4), host.codes)
            for number, strip in zip(self._table.pages[start // block :], strips, strict=False):
                host.page(number).copy_(strip)
            return
        for at in range(0, values.shape[2], block):
            part = values[:, :, at : at + block]
            host.page(self._table.pages[(start + at) // block])[:, :, : part.shape[2]] = part

    def fork(self) -> TieredCache:
        """A cache over the same pages; whoever writes first copies the last block."""
        return TieredCache(self.store, self._table.fork())
