"""What the attention layers read in a session's last call. Knows layers and blocks, not tokens or texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from salalocal.errors import InvalidRequest
from salalocal.model.sparse_layer import BlocksRead


class Readings:
    """Selected blocks of all of the last call's queries, and the attention of its last token.

    Args:
        records_selection: keep the selected blocks.
        layers: the attention layers' indices among all layers.
    """

    def __init__(self, records_selection: bool, layers: Sequence[int]) -> None:
        self.records_selection = records_selection
        self._layers = layers
        self._selected: dict[int, list[Tensor]] = {}
        self._last: dict[int, BlocksRead] = {}

    def clear(self) -> None:
        """A new call begins."""
        self._selected, self._last = {}, {}

    def add(self, found: Mapping[int, BlocksRead], is_watched: bool) -> None:
        """What the layers read for the next tokens of the call."""
        self._last = dict(found) if is_watched else {}
        for layer, read in found.items():
            if self.records_selection and read.selected is not None:
                self._selected.setdefault(layer, []).append(read.selected)

    def take_copy(self, found: Mapping[int, BlocksRead], num_blocks: int, is_watched: bool) -> None:
        """What a call of one token read, out of memory that the next one overwrites.

        Args:
            found: dense layers name more blocks than the context has.
            num_blocks: of the context.
            is_watched: whether `found` holds the attention.
        """
        self.clear()
        copies: dict[int, BlocksRead] = {}
        for layer, read in found.items():
            selected = read.selected.clone() if read.selected is not None else None
            copies[layer] = BlocksRead(selected)
            if is_watched and read.last_blocks is not None and read.last_mass is not None:
                there = None if selected is not None else num_blocks
                copies[layer] = BlocksRead(
                    selected, read.last_blocks[:, :there].clone(), read.last_mass[:, :there].clone()
                )
        self.add(copies, is_watched)

    def selected_blocks(self, layer: int) -> Tensor | None:
        """As `Session.selected_blocks`."""
        if not self.records_selection:
            raise InvalidRequest("selected_blocks needs a session made with record_selection=True")
        if layer not in self._layers:
            raise InvalidRequest(f"layer {layer} selects no blocks; sparse are {self._layers}")
        parts = self._selected.get(layer)
        return None if not parts else torch.cat(parts, dim=1)

    @property
    def has_attention(self) -> bool:
        """Whether `attention_mass` has something to tell."""
        return bool(self._last)

    def attention_mass(self, layer: int) -> tuple[Tensor, Tensor]:
        """As `Session.attention_mass`."""
        read = self._last.get(layer)
        if read is None or read.last_blocks is None or read.last_mass is None:
            raise InvalidRequest(
                f"layer {layer} has no attention to show: is_watched must be set before the call, and attention layers "
                f"are {self._layers}"
            )
        return read.last_blocks, read.last_mass
