"""One attention layer whose K/V is in host memory: how tokens get there, and how what they read comes back.

A chunk's own blocks are on the device while it is read; its history passes through the staging buffers piece by piece.
A single token reads from slots, as a recorded step does.

Where the host keeps 8 bits, K and V are rounded before anybody reads them, so that the numbers are the same whether
they were ever away or not. Compressed keys are means of the rounded keys too: their windows reach back over the edge of
a chunk, to keys of which nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from salalocal.cache.attention_cache import AttentionCache, Levels, recent_blocks
from salalocal.cache.attention_memory import Piece
from salalocal.cache.staging import write_pages
from salalocal.cache.step_memory import recent_before
from salalocal.cache.tiered_cache import TieredCache
from salalocal_kernels import pack_pages, unpack_pages

# Blocks that a token of a chunk reads and no other, roughly: so few tokens that these are less than the history leave
# most of it unread, and nothing of it is asked for early.
_PICKS_OF_ITS_OWN = 8


class TieredAttention(AttentionCache):
    """The memory of one layer while one chunk or token is read.

    Args:
        index: position among attention layers.
        kv: K/V of all attention layers.
        compressed: fine and coarse compressed keys; None where the layer is always dense.
    """

    def __init__(self, index: int, kv: TieredCache, compressed: Levels | None) -> None:
        super().__init__(index, kv, compressed, kv.store.kv_heads)
        self._kv = kv
        self._store = kv.store
        self._layer = kv.store.layer(index)
        # The chunk's own pages on the device, from this block on; None for a single token.
        self._own: Tensor | None = None
        self._first_own = 0

    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [T, Hkv, D] of tokens from `position` on and every window they complete."""
        assert isinstance(position, int)
        if keys.shape[0] == 1:
            self._append_token(position, keys[0], values[0])
        else:
            self._append_chunk(position, keys, values)

    def _append_token(self, position: int, keys: Tensor, values: Tensor) -> None:
        table = self._kv.page_table
        self._store.use_slots()
        block, slots = position // self._kv.block_size, self._store.slot_table(len(table))
        count = recent_blocks(self._compressed, self._kv.block_size)
        recent = recent_before(block, count, self._kv_heads).to(table.device)
        self._layer.append(position, keys, values, recent, table, slots)
        self._extend_compressed(self._layer.pages, slots, position, 1)

    def _append_chunk(self, position: int, keys: Tensor, values: Tensor) -> None:
        block, length = self._kv.block_size, position + keys.shape[0]
        begun, count = position // block, self.num_blocks(length)
        first = begun
        if self._compressed is not None:
            stride = self._compressed[1].stride
            # Where the first window begins that these tokens may complete.
            first = min(begun, max(0, position // stride - 1) * stride // block)
        numbers, host = self._kv.numbers, self._layer.host
        # Of earlier tokens, in blocks that these go on with or that windows reach back to.
        earlier = -(-position // block) - first
        outbox = self._store.outbox
        own = outbox.take(count - first)
        # The rest of the last block is multiplied by weights of 0.
        own[-1].zero_()
        own[:earlier] = self._store.earlier(self._index, numbers[first : first + earlier])
        positions = torch.arange(position, length, device=own.device)
        page, offset = positions // block - first, positions % block
        own[page, :, 0, offset] = keys
        own[page, :, 1, offset] = values
        self._own, self._first_own = own, first
        sent = own[begun - first :]
        if host.codes is not None:
            # Earlier tokens of its first block stay as they are: they were rounded before.
            pages, sent = sent, pack_pages(sent, host.codes)
            unpack_pages(sent, host.codes, pages)
        behind = self._store.behind
        behind.follow()
        with behind.copying():
            write_pages(host, numbers[begun:count], sent)
        outbox.sent()
        if host.codes is not None:
            behind.uses(sent)
        self._prefetch(self._index, keys.shape[0])
        self._extend_compressed(own, self._own_table(count), position, keys.shape[0])

    def context(self, length: int) -> Tensor:
        """Pages [N, Hkv, 2, B, D] of the first `length` tokens in order, which one buffer has room for."""
        count = self.num_blocks(length)
        assert count <= self._store.shares.staged_pages
        if self._own is None:
            # A single token has been written to the host by computing.
            history, own = self._kv.numbers[:count], None
            key: object = None
        else:
            history, own, key = self._kv.numbers[: self._first_own], self._own, self._key(self._index)
        # What comes next is not asked for before this has been read.
        return self._staged(key, history, None, own)[:count]

    def pieces(self, blocks: Tensor) -> Iterator[Piece]:
        """As `AttentionMemory.pieces`; the history is copied once, and what nobody reads is left out."""
        assert self._own is not None
        own, first = self._own, self._first_own
        count, history, tokens = first + len(own), self._kv.numbers[:first], blocks.shape[1]
        key, table = self._key(self._index), torch.arange(count, device=own.device)
        if count <= self._store.shares.staged_pages or not len(history):
            wanted = None if self._reads_most(tokens) else self._wanted(blocks, count)
            yield Piece(self._staged(key, history, wanted, own), table, 0, count, is_whole=True)
        else:
            staging, wanted = self._store.use_buffers(), self._wanted(blocks, count)
            for start, stop, pages in staging.stream(key, self._layer.host, history, wanted):
                yield Piece(pages, table - start, start, stop, is_whole=False)
            yield Piece(own, table - first, first, count, is_whole=False)
        self._prefetch(self._index + 1, tokens)

    def fetched(self, blocks: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Slots as pages, with the blocks [Hkv, K] in them, and the slot of each block."""
        self._store.use_slots()
        table = self._kv.page_table
        slots = self._store.slot_table(len(table))
        if self._own is not None:
            self._store.behind.lead()
        self._layer.fetch(blocks, table, length, slots)
        return self._layer.pages, slots

    def _wanted(self, blocks: Tensor, count: int) -> np.ndarray:
        """The blocks of the history, of `count` in all, that are read; waits for the device."""
        is_read = torch.zeros(count + 1, dtype=torch.bool, device=blocks.device)
        is_read[blocks.flatten().long()] = True  # -1 is the spare last one
        return is_read[: self._first_own].cpu().numpy().nonzero()[0]

    def _staged(self, key: object, history: np.ndarray, wanted: np.ndarray | None, own: Tensor | None) -> Tensor:
        """One buffer with what is wanted of the history, and the chunk's own pages behind it."""
        if own is not None and not len(history):
            return own
        some = None if wanted is None or not len(wanted) else wanted
        ((_, _, buffer),) = self._store.use_buffers().stream(key, self._layer.host, history, some)
        if own is not None:
            buffer[len(history) : len(history) + len(own)] = own
        return buffer

    def _reads_most(self, tokens: int) -> bool:
        """Whether so many tokens are likely to read most of the history, if there is any."""
        return self._first_own <= tokens * _PICKS_OF_ITS_OWN

    def _prefetch(self, index: int, tokens: int) -> None:
        """Asks early for what a layer reads first, where that is likely to be most of the history."""
        history = self._kv.numbers[: self._first_own]
        if self._own is not None and len(history) and index < self._store.layers and self._reads_most(tokens):
            key = self._key(index)
            self._store.use_buffers().prefetch(key, self._store.layer(index).host, history)

    def _key(self, index: int) -> tuple[int, int, int]:
        return self._store.round, index, self._first_own

    def _own_table(self, count: int) -> Tensor:
        """The page in `own` of each block; below 0 before it."""
        assert self._own is not None
        return torch.arange(-self._first_own, count - self._first_own, device=self._own.device)
