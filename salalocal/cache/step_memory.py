"""A session's memory as one decode step sees it that is recorded once and replayed: every tensor stays where it is.

There is room for more tokens than there are; how many there are is known on the device only. Reads past the length are
masked by whoever reads, so what lies there may be anything finite (K and V) or anything at all (compressed keys).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.attention_memory import Piece
from salalocal.cache.tiered_store import TierLayer
from salalocal_kernels import append_token, extend_compressed_keys


@dataclass(frozen=True)
class LayerStorage:
    """What an attention layer stores.

    Attributes:
        pages: [P, Hkv, 2, B, D], or the slots as pages where K and V are in host memory.
        compressed: fine and coarse keys, [Hkv, C, D] each; None where the layer is always dense.
        kernel_stride: tokens between fine keys; 0 without them.
        tier: host memory and slots; None where all K and V are on the device.
    """

    pages: Tensor
    compressed: tuple[Tensor, Tensor] | None
    kernel_stride: int
    tier: TierLayer | None = None


@dataclass(frozen=True)
class StepStorage:
    """Everything a step reads and writes.

    Attributes:
        page_table: int64 [N], the page of each block; entries of blocks that are not there yet name any page.
        blocks: int32 [Hkv, N], 0 to N - 1.
        states: [H, Dk, Dv] per lightning layer, before the step; new_states: after it.
        layers: per attention layer.
        recent: blocks back from a token's own, that included, which the windows it completes may reach.
        slot_table: int64 [Hkv, N], the slots of what a layer reads, which the next layer overwrites; with tiers only.
    """

    page_table: Tensor
    blocks: Tensor
    states: tuple[Tensor, ...]
    new_states: tuple[Tensor, ...]
    layers: tuple[LayerStorage, ...]
    recent: int
    slot_table: Tensor

    def at(self, position: Tensor, length: Tensor) -> StepMemory:
        """The memory of the step that reads the token at `position`, the last of `length`; int64 [1] on the device."""
        if not self.layers or self.layers[0].tier is None:
            return StepMemory(self, position, length, None)
        block = torch.div(position, self.layers[0].pages.shape[3], rounding_mode="floor")
        return StepMemory(self, position, length, recent_before(block, self.recent, self.blocks.shape[0]))


@dataclass(frozen=True)
class StepMemory:
    """The storage at one position.

    Attributes:
        position, length: int64 [1]; the second is one more.
        recent: int32 [Hkv, R], the token's block and those before it; None without tiers.
    """

    storage: StepStorage
    position: Tensor
    length: Tensor
    recent: Tensor | None

    @property
    def states(self) -> tuple[Tensor, ...]:
        """[H, Dk, Dv] per lightning layer, before the step."""
        return self.storage.states

    @property
    def new_states(self) -> tuple[Tensor, ...]:
        """[H, Dk, Dv] per lightning layer, after it."""
        return self.storage.new_states

    def attention(self, index: int) -> StepAttention:
        """The memory of attention layer number `index` (counted among attention layers)."""
        return StepAttention(self, self.storage.layers[index])


@dataclass(frozen=True)
class StepAttention:
    """An `AttentionMemory` for one token at a position that is a tensor."""

    memory: StepMemory
    layer: LayerStorage

    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [1, Hkv, D] of the token and every window it completes."""
        memory, pages, table = self.memory, self.layer.pages, self.memory.storage.page_table
        fine, coarse = self.layer.compressed or (None, None)
        if self.layer.tier is None:
            append_token(pages, table, fine, coarse, position, keys[0], values[0], self.layer.kernel_stride)
            return
        assert memory.recent is not None
        slots = memory.storage.slot_table
        self.layer.tier.append(position, keys[0], values[0], memory.recent, table, slots)
        if fine is not None and coarse is not None:
            extend_compressed_keys(pages, slots, fine, coarse, position, 1, self.layer.kernel_stride)

    def fetched(self, blocks: Tensor, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Pages with the blocks [Hkv, K] in them, and the page of each block."""
        storage = self.memory.storage
        if self.layer.tier is None:
            return self.layer.pages, storage.page_table
        self.layer.tier.fetch(blocks, storage.page_table, length, storage.slot_table)
        return self.layer.pages, storage.slot_table

    def compressed_keys(self, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse keys, with the room behind them."""
        del length
        assert self.layer.compressed is not None
        return self.layer.compressed

    def num_blocks(self, length: int | Tensor) -> int:
        """Blocks there is room for."""
        del length
        return self.memory.storage.page_table.shape[0]

    def every_block(self, length: int | Tensor) -> Tensor:
        """int32 [Hkv, N]: all blocks there is room for."""
        del length
        return self.memory.storage.blocks

    def context(self, length: int) -> Tensor:
        """Not to be had without knowing the length here."""
        raise AssertionError(length)

    def pieces(self, blocks: Tensor) -> Iterator[Piece]:
        """For several tokens, which this is not."""
        raise AssertionError(blocks.shape)


def recent_before(block: int | Tensor, count: int, kv_heads: int) -> Tensor:
    """int32 [Hkv, count]: blocks up to `block`; those below 0 are none.

    Args:
        block: int64 [1], or a number, which stays on the processor.
        count: how many.
        kv_heads: rows.
    """
    device = block.device if isinstance(block, Tensor) else None
    return (block + torch.arange(1 - count, 1, device=device)).to(torch.int32).expand(kv_heads, -1)
