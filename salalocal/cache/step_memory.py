"""A session's memory as one decode step sees it that is recorded once and replayed: every tensor stays where it is.

There is room for more tokens than there are; how many there are is known on the device only. Reads past the length are
masked by whoever reads, so what lies there may be anything finite (K and V) or anything at all (compressed keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_kernels import extend_compressed_keys


@dataclass(frozen=True)
class LayerStorage:
    """What an attention layer stores.

    Attributes:
        pages: [P, Hkv, 2, B, D].
        compressed: fine and coarse keys, [Hkv, C, D] each; None where the layer is always dense.
        kernel_stride: tokens between fine keys; 0 without them.
    """

    pages: Tensor
    compressed: tuple[Tensor, Tensor] | None
    kernel_stride: int


@dataclass(frozen=True)
class StepStorage:
    """Everything a step reads and writes.

    Attributes:
        page_table: int64 [N], the page of each block; entries of blocks that are not there yet name any page.
        blocks: int32 [Hkv, N], 0 to N - 1.
        states: [H, Dk, Dv] per lightning layer, before the step; new_states: after it.
        layers: per attention layer.
    """

    page_table: Tensor
    blocks: Tensor
    states: tuple[Tensor, ...]
    new_states: tuple[Tensor, ...]
    layers: tuple[LayerStorage, ...]

    def at(self, position: Tensor) -> StepMemory:
        """The memory of the step that reads the token at `position`, int64 [1] on the device."""
        block_size = self.layers[0].pages.shape[3] if self.layers else 1
        block = torch.div(position, block_size, rounding_mode="floor")
        # Without attention layers there are no pages, and nobody asks for one.
        page = self.page_table[block] if self.layers else block
        return StepMemory(self, position, page, position - block * block_size)


@dataclass(frozen=True)
class StepMemory:
    """The storage at one position; the page and the offset in it where the token's K and V go are int64 [1]."""

    storage: StepStorage
    position: Tensor
    page: Tensor
    offset: Tensor

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

    @property
    def pages(self) -> Tensor:
        """All pages [P, Hkv, 2, B, D]."""
        return self.layer.pages

    @property
    def page_table(self) -> Tensor:
        """int64 [N]: the page of each block."""
        return self.memory.storage.page_table

    def append(self, position: int | Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [1, Hkv, D] of the token and every window it completes."""
        pages, page, offset = self.pages, self.memory.page, self.memory.offset
        pages[page, :, 0, offset] = keys
        pages[page, :, 1, offset] = values
        if self.layer.compressed is not None:
            fine, coarse = self.layer.compressed
            extend_compressed_keys(pages, self.page_table, fine, coarse, position, 1, self.layer.kernel_stride)

    def compressed_keys(self, length: int | Tensor) -> tuple[Tensor, Tensor]:
        """Fine and coarse keys, with the room behind them."""
        del length
        assert self.layer.compressed is not None
        return self.layer.compressed

    def num_blocks(self, length: int | Tensor) -> int:
        """Blocks there is room for."""
        del length
        return self.page_table.shape[0]

    def every_block(self, length: int | Tensor) -> Tensor:
        """int32 [Hkv, N]: all blocks there is room for."""
        del length
        return self.memory.storage.blocks

    def context(self, length: int) -> Tensor:
        """Not to be had without knowing the length here."""
        raise AssertionError(length)
