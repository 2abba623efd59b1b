"""Attention layers that read made selections in place of their own. Knows no clock and no scores.

A layer still scores all blocks and chooses among them, so a step costs what it always costs; what it chose is then put
aside, and it reads what a table says. One table serves all layers: their K and V are different memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.model.network import Layer, Network
from salalocal.model.sparse_layer import SparseLayer
from salalocal_kernels.gpu.bench.selections import selection


class Selections(Protocol):
    """What queries read in place of what they chose."""

    def aim(self, position: int) -> None:
        """The next call of one token reads the one at `position`."""

    def of(self, position: int | Tensor, tokens: int) -> Tensor:
        """int32 [Hkv, tokens, K] of the tokens from `position` on; of one token that which `aim` named."""


class Replay:
    """The selections of consecutive tokens of a chunk or an answer, from a table made beforehand.

    Args:
        table: int32 [Hkv, T, K], ascending, of the tokens from `first` on.
        first: absolute position.
    """

    def __init__(self, table: Tensor, first: int) -> None:
        self._table = table
        self._first = first
        # Where a recorded step finds the selection of its token, which changes between replays.
        self._of_next = table[:, :1].clone()

    @staticmethod
    def made(config: ModelConfig, first: int, tokens: int, shared: float, device: torch.device) -> Replay:
        """Neighbouring tokens share so large a part of their free picks; see `selections`."""
        sparse = config.sparse
        assert sparse is not None
        table = selection(
            first, tokens, shared, config.num_key_value_heads,
            block=sparse.block_size, local=sparse.local_blocks, picks=sparse.selected_blocks,
        )  # fmt: skip
        return Replay(table.to(device), first)

    def aim(self, position: int) -> None:
        """The next call of one token reads the one at `position`."""
        at = position - self._first
        self._of_next.copy_(self._table[:, at : at + 1])

    def of(self, position: int | Tensor, tokens: int) -> Tensor:
        """int32 [Hkv, tokens, K] of the tokens from `position` on; of one token that which `aim` named."""
        if tokens == 1:
            return self._of_next
        assert isinstance(position, int)
        at = position - self._first
        return self._table[:, at : at + tokens]


@dataclass(frozen=True)
class ReplayedLayer(SparseLayer):
    """A sparse layer that chooses as always and reads what `replay` says."""

    replay: Selections

    def select(self, scores: Tensor, first_position: int | Tensor) -> Tensor:
        """As in `SparseLayer`, of `replay`."""
        super().select(scores, first_position)
        return self.replay.of(first_position, scores.shape[1])


def replaying(network: Network, made: Selections) -> Network:
    """The same network, of the same weights, whose sparse layers read the selections of `made`."""

    def replayed(layer: Layer) -> Layer:
        mixer = layer.mixer
        if not isinstance(mixer, SparseLayer):
            return layer
        return replace(layer, mixer=ReplayedLayer(mixer.config, mixer.inputs, mixer.o_proj, made))

    return replace(network, layers=tuple(map(replayed, network.layers)))
