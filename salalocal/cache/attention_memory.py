"""What an attention layer asks of a memory, whoever keeps it. Knows no pages' owners and no sessions."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionMemory(Protocol):
    """K/V pages and compressed keys of one layer.

    Lengths and positions are numbers, or int64 tensors of one element where only the device knows them; a memory that
    takes the latter gives everything there is room for, and what lies past the length is anything.
    """

    @property
    def pages(self) -> Tensor:
        """All pages [P, Hkv, 2, B, D]."""

    @property
    def page_table(self) -> Tensor:
        """int64 [N]: the page of each block."""

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
