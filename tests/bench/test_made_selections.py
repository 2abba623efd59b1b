"""Selections that are drawn on the device: which blocks they name, what neighbours share, and that layers read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import BLOCK, PICKS, small_config

from salalocal.bench.made_model import make_network, released_config
from salalocal.bench.made_selections import MadeSelections, drawn
from salalocal.bench.replay import replaying
from salalocal.bench.steps import MADE_UP
from salalocal.cache.session_cache import SessionCache
from salalocal.engine.session import Session

CPU = torch.device("cpu")
RELEASED = released_config().sparse
SMALL = small_config().sparse
assert RELEASED is not None
assert SMALL is not None


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def kept_share(table: Tensor, own_blocks: Tensor, local: int) -> float:
    """Of the free picks of queries whose own block is that of the query before, so many were there before."""
    shares = []
    for token in range(1, table.shape[1]):
        own = int(own_blocks[token])
        if own != int(own_blocks[token - 1]):
            continue
        for rows in table:
            before, now = ({b for b in row.tolist() if 0 < b < own - local} for row in rows[token - 1 : token + 1])
            shares.append(len(before & now) / len(now))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("shared", [0.0, 0.64, 0.87])
def test_neighbours_share_what_is_asked(shared: float) -> None:
    first, tokens = 1 << 17, 200
    table = drawn(RELEASED, 2, first, tokens, shared, generator())
    assert (table.shape, table.dtype) == ((2, tokens, 96), torch.int32)
    own = (first + torch.arange(tokens)) // 64
    assert kept_share(table, own, 32) == pytest.approx(shared, abs=0.01)
    assert (table.diff(dim=-1) > 0).all()
    assert (table[..., 0] == 0).all()
    assert torch.equal(table[1, :, -33:], (own[:, None] + torch.arange(-32, 1)).int())


def test_every_visible_block_is_as_likely() -> None:
    """Of 2,048 blocks, 62 picks of each of 400 queries that share nothing."""
    table = drawn(RELEASED, 2, 1 << 17, 400, 0.0, generator())
    free = table[:, :, 1:63].flatten()
    counts = torch.bincount(free, minlength=2048)[1 : 2048 - 32].double()
    expected = free.numel() / len(counts)
    # Poisson: the root mean square of the deviation is that of the mean.
    assert (counts - expected).square().mean().sqrt() == pytest.approx(expected**0.5, rel=0.1)
    assert counts.chunk(2)[0].sum() == pytest.approx(free.numel() / 2, rel=0.02)


def test_the_beginning_of_a_text_reads_all_there_is() -> None:
    table = drawn(SMALL, 2, 0, 40 * BLOCK, 0.64, generator())
    for token in range(table.shape[1]):
        own = token // BLOCK
        row = [block for block in table[0, token].tolist() if block >= 0]
        assert row == sorted(set(row))
        assert len(row) == min(own + 1, PICKS)
        assert {0, *range(max(0, own - 2), own + 1)} <= set(row) <= set(range(own + 1))
        assert (table[0, token, len(row) :] == -1).all()


@pytest.mark.parametrize("position", [0, 8100, 3 * 8192])
def test_a_selection_follows_from_its_position(position: int) -> None:
    """Also across the edges of tables, and after they were thrown away."""
    made = MadeSelections(small_config(), 0.64, 0.87, CPU)
    whole = made.of(position, 200).clone()
    made.of(10 * 8192, 4 * 8192)
    parts = [made.of(position + start, 50) for start in range(0, 200, 50)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert whole.shape == (2, 200, PICKS)


def test_layers_read_them_in_chunks_and_steps() -> None:
    network = make_network(small_config(), torch.float32, CPU)
    made = MadeSelections(network.config, 0.64, 0.87, CPU)
    cache = SessionCache.empty(network.config, torch.float32, CPU)
    session = Session(replaying(network, made), cache, 64, 1000, record_selection=True, model=MADE_UP)
    session.prefill([token % 300 for token in range(500)], final_length=500)
    table = made.of(0, 500)
    for layer in network.config.sparse_layers:
        assert torch.equal(session.selected_blocks(layer), table)
    steps = []
    for _ in range(60):
        made.aim(session.length)
        session.step(1)
        steps.append(session.selected_blocks(0))
    own = (500 + torch.arange(60)) // BLOCK
    assert kept_share(torch.cat(steps, dim=1), own, 2) == pytest.approx(0.87, abs=0.06)
