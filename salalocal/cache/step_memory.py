"""A session's memory as one decode step sees it that is recorded once and replayed: every tensor stays where it is.

There is room for more tokens than there are; how many there are is known on the device only. Reads past the length are
masked by whoever reads, so what lies there may be anything finite (K and V) or anything at all (compressed keys).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salalocal_kernels import append_token


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
        return StepMemory(self, position)


@dataclass(frozen=True)
class StepMemory:
    """The storage at one position, int64 [1]."""

    storage: StepStorage
    position: Tensor

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
        fine, coarse = self.layer.compressed or (None, None)
        stride = self.layer.kernel_stride
        append_token(self.pages, self.page_table, fine, coarse, position, keys[0], values[0], stride)

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
