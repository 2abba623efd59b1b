"""What an attention layer asks of a memory, whoever keeps it. Knows no pages' owners and no sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Some blocks of the context, which queries attend to by themselves.

    Attributes:
        pages: [P, Hkv, 2, B, D].
        page_table: int64 [N], the page of each block; of those that are no part of the piece anything.
        first, stop: the blocks of the piece.
        is_whole: there are no others.
    """

    pages: Tensor
    page_table: Tensor
    first: int
    stop: int
    is_whole: bool


class AttentionMemory(Protocol):
    """K/V pages and compressed keys of one layer.

    Lengths and positions are numbers, or int64 tensors of one element where only the device knows them; a memory that
    takes the latter gives everything there is room for, and what lies past the length is anything.
    """

    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [T, Hkv, D] of tokens from `position` on and every window they complete."""

    def compressed_keys(self, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse compressed keys [Hkv, n, D] of the first `length` tokens."""

    def num_blocks(self, length: int | Tensor) -> int:
        """Blocks that the first `length` tokens take."""

    def every_block(self, length: int | Tensor) -> Tensor:
        """int32 [Hkv, N]: all blocks of the first `length` tokens."""

    def context(self, length: int) -> Tensor:
        """Pages [N, Hkv, 2, B, D] of the first `length` tokens in order."""

    def pieces(self, blocks: Tensor) -> Iterator[Piece]:
        """What the tokens appended last read, in pieces that have every block of `blocks` [Hkv, T, K] together; each is
        good until the next is asked for."""

    def fetched(self, blocks: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Pages [P, Hkv, 2, B, D] with the blocks [Hkv, K] that one token reads, and the page of each block, int64 [N]
        or [Hkv, N]; good until the next layer asks."""
