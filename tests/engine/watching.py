"""Sessions whose attention is watched, for tests. Knows no tally."""

from __future__ import annotations

from collections import defaultdict

from salalocal.engine.engine import Engine
from salalocal.engine.session import Session

SPARSE_LAYERS = (0, 2)
"""Of the tiny models."""


def watched(engine: Engine, **options: bool) -> Session:
    session = engine.new_session(**options)
    session.is_watched = True
    return session


def mass_by_position(session: Session, layers: tuple[int, ...] = SPARSE_LAYERS) -> dict[int, float]:
    """What the last query's attention gave to each position, added up token by token."""
    sums: dict[int, float] = defaultdict(float)
    for layer in layers:
        blocks, mass = session.attention_mass(layer)
        for picked, rows in zip(blocks.tolist(), mass.double().tolist(), strict=True):
            for block, row in zip(picked, rows, strict=True):
                for offset, share in enumerate(row):
                    if block >= 0:
                        sums[block * len(row) + offset] += share
                    else:
                        assert share == 0
    return sums
