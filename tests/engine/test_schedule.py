"""Chunk edges, common beginnings and thinning as properties."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.engine.schedule import chunk_edges, common_length, thin

lengths = st.integers(0, 300)


@given(lengths, lengths, st.integers(1, 400), st.lists(st.integers(-10, 700)))
def test_edges(start: int, count: int, chunk_size: int, checkpoints_at: list[int]) -> None:
    stop = start + count
    edges = chunk_edges(start, stop, chunk_size, checkpoints_at)
    inside = {position for position in checkpoints_at if start < position < stop}
    steps = [b - a for a, b in zip([start, *edges], edges, strict=False)]
    assert all(0 < step <= chunk_size for step in steps)
    assert inside <= set(edges)
    assert edges[-1:] == ([stop] if count else [])
    # No edge without a reason: a full chunk, a checkpoint, or the end.
    assert all(step == chunk_size or edge in inside or edge == stop for step, edge in zip(steps, edges, strict=True))


def test_edges_by_hand() -> None:
    assert chunk_edges(0, 10, 4) == [4, 8, 10]
    assert chunk_edges(3, 10, 4, [5, 3, 10, 99]) == [5, 9, 10]
    assert chunk_edges(5, 5, 4, [5]) == []


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)), st.integers(0, 9000))
def test_common_length(one: list[int], other: list[int], shared: int) -> None:
    one, other = [7] * shared + one, [7] * shared + other
    found = common_length(one, other)
    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]
    assert common_length(other, one) == found


def test_a_million_ids_are_compared_in_a_blink() -> None:
    ids = list(range(1_000_000))
    started = time.perf_counter()
    assert common_length(ids, [*ids[:-1], -1]) == 999_999
    assert time.perf_counter() - started < 2


positions = st.lists(st.integers(0, 10_000), unique=True).map(sorted)


@given(positions, st.integers(0, 40))
def test_thinned(positions: list[int], keep: int) -> None:
    dropped = thin(positions, keep)
    left = [position for position in positions if position not in dropped]
    assert dropped <= set(positions)
    assert len(left) == min(len(positions), max(keep, 2))
    if positions:
        assert (left[0], left[-1]) == (positions[0], positions[-1])


def test_thinning_keeps_what_is_far_apart() -> None:
    assert thin([0, 100, 101, 102, 200], 3) == {101, 102} or thin([0, 100, 101, 102, 200], 3) == {100, 101}
    assert thin(range(0, 90, 10), 9) == set()


@pytest.mark.parametrize("count", [3, 10, 50])
def test_added_one_by_one_they_stay_spread(count: int) -> None:
    kept: list[int] = []
    for position in range(0, 10_000, 10):
        kept.append(position)
        dropped = thin(kept, count)
        kept = [known for known in kept if known not in dropped]
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert max(gaps) <= 8 * 10_000 / count, "no stretch is without a checkpoint"
