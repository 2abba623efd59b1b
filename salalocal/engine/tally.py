"""Adds up which tokens an answer's queries attended to. Knows sessions; what the tokens say is `evidence`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from salalocal.engine.session import Session


class AttentionTally:
    """The attention of the tokens of one answer.

    Args:
        session: the one that answers.
        layers: its attention layers.
        tokens: positions counted, from the first on.
    """

    def __init__(self, session: Session, layers: Sequence[int], tokens: int) -> None:
        self._session = session
        self._layers = layers
        self._mass = torch.zeros(tokens, dtype=torch.float64)
        self._counted = -1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The session keeps what `add` needs."""
        before, self._session.is_watched = self._session.is_watched, True
        try:
            yield
        finally:
            self._session.is_watched = before

    def add(self) -> None:
        """Counts the query that the session read last, once. A prompt that was known to its end has none to count."""
        if not self._session.has_attention or self._session.length == self._counted:
            return
        self._counted = self._session.length
        for layer in self._layers:
            blocks, mass = self._session.attention_mass(layer)
            size = mass.shape[-1]
            positions = blocks.long()[..., None] * size + torch.arange(size, device=blocks.device)
            counted = (blocks[..., None] >= 0) & (positions < len(self._mass))
            self._mass.index_add_(0, positions[counted].cpu(), mass[counted].double().cpu())

    def mass(self) -> NDArray[np.float64]:
        """Attention of every position, summed over heads, layers and queries."""
        return self._mass.numpy()
