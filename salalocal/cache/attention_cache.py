"""What one attention layer remembers of a session, by its index among the attention layers. Knows no other layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from salalocal.cache.attention_memory import Piece
from salalocal.cache.compressed_keys import CompressedKeys
from salalocal.cache.kv_store import KVCache, PagedCache
from salalocal_kernels import extend_compressed_keys

Levels = tuple[CompressedKeys, CompressedKeys]


def recent_blocks(levels: Levels | None, block_size: int) -> int:
    """Blocks, from a token's own back, that the windows which it completes may reach."""
    return 1 if levels is None else -(-levels[1].kernel_size // block_size) + 1


class AttentionCache(ABC):
    """An `AttentionMemory` whose lengths are numbers.

    Args:
        index: position among attention layers.
        kv: which pages K/V of all attention layers are in.
        compressed: fine and coarse compressed keys; None where the layer is always dense.
        kv_heads: K/V heads.
    """

    def __init__(self, index: int, kv: PagedCache, compressed: Levels | None, kv_heads: int) -> None:
        self._index = index
        self._blocks = kv
        self._compressed = compressed
        self._kv_heads = kv_heads

    @abstractmethod
    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [T, Hkv, D] of tokens from `position` on and every window they complete."""

    @abstractmethod
    def context(self, length: int) -> Tensor:
        """Pages [N, Hkv, 2, B, D] of the first `length` tokens in order."""

    @abstractmethod
    def pieces(self, blocks: Tensor) -> Iterator[Piece]:
        """As `AttentionMemory.pieces`."""

    @abstractmethod
    def fetched(self, blocks: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """As `AttentionMemory.fetched`."""

    def compressed_keys(self, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse compressed keys [Hkv, n, D] of the first `length` tokens."""
        assert self._compressed is not None
        assert isinstance(length, int)
        fine, coarse = self._compressed
        return fine.upto(length), coarse.upto(length)

    def num_blocks(self, length: int | Tensor) -> int:
        """Blocks that the first `length` tokens take."""
        return -(-int(length) // self._blocks.block_size)

    def every_block(self, length: int | Tensor) -> Tensor:
        """int32 [Hkv, N]: all blocks of the first `length` tokens."""
        blocks = torch.arange(self.num_blocks(length), dtype=torch.int32, device=self._blocks.page_table.device)
        return blocks.expand(self._kv_heads, -1)

    def _extend_compressed(self, pages: Tensor, page_table: Tensor, position: int, tokens: int) -> None:
        """Every window that the tokens from `position` on complete, from pages that hold its keys."""
        length = position + tokens
        if self._compressed is None or self._compressed[0].count(length) == self._compressed[0].count(position):
            return
        # A level whose windows stay the same is not written to, and may stay shared.
        fine, coarse = (
            level.room(level.count(length)) if level.count(length) > level.count(position) else level.storage
            for level in self._compressed
        )
        extend_compressed_keys(pages, page_table, fine, coarse, position, tokens, self._compressed[0].stride)


class ResidentAttention(AttentionCache):
    """One layer whose K/V is all on the device.

    Args:
        index: position among attention layers.
        kv: K/V of all attention layers.
        compressed: as above.
    """

    def __init__(self, index: int, kv: KVCache, compressed: Levels | None) -> None:
        super().__init__(index, kv, compressed, kv.pages(index).shape[1])
        self._kv = kv

    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [T, Hkv, D] of tokens from `position` on and every window they complete."""
        assert isinstance(position, int)
        self._kv.write(self._index, position, keys, values)
        self._extend_compressed(self._kv.pages(self._index), self._kv.page_table, position, keys.shape[0])

    def context(self, length: int) -> Tensor:
        """Pages [N, Hkv, 2, B, D] of the first `length` tokens in order."""
        return self._kv.context(self._index, length)

    def pieces(self, blocks: Tensor) -> Iterator[Piece]:
        """All pages at once."""
        del blocks
        table = self._kv.page_table
        yield Piece(self._kv.pages(self._index), table, 0, len(table), is_whole=True)

    def fetched(self, blocks: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """All pages, and the page of each block."""
        del blocks, length
        return self._kv.pages(self._index), self._kv.page_table
