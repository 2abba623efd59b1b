"""Pages that pass through two buffers: each piece holds what is wanted of it, whatever was asked for before."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salalocal.cache.page_table import page_runs
from salalocal.cache.staging import Lane, Outbox, Staging, read_pages, write_pages
from salalocal_kernels import HostPages, pack_pages

CPU = torch.device("cpu")
NO_STRIPS = torch.empty(0, 1, 24, dtype=torch.uint8)


def host(pages: int, per_segment: int = 5) -> HostPages:
    """Page p holds the number p everywhere."""
    count = -(-pages // per_segment) * per_segment
    data = torch.arange(count).float().view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2).contiguous()
    return HostPages(list(data.split(per_segment)), torch.zeros(9, dtype=torch.int64), True)


@given(
    numbers=st.lists(st.integers(0, 40), max_size=30, unique=True),
    data=st.data(),
    per_segment=st.integers(1, 9),
    gap=st.integers(0, 3),
    in_order=st.booleans(),
)
@settings(deadline=None)
def test_runs_have_everything_wanted_once(
    numbers: list[int], data: st.DataObject, per_segment: int, gap: int, in_order: bool
) -> None:
    table = np.array(sorted(numbers) if in_order else numbers, dtype=np.int64)
    places = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(table), max_size=len(table))))
    runs = list(page_runs(table, places, per_segment, gap))
    covered = [place for start, stop in runs for place in range(start, stop)]
    assert covered == sorted(set(covered))
    assert set(places) <= set(covered)
    for start, stop in runs:
        assert {start, stop - 1} <= set(places), "nothing is copied before or behind what is wanted"
        first = int(table[start])
        assert first // per_segment == (first + stop - start - 1) // per_segment
        assert all(table[place] == first + place - start for place in range(start, stop) if place in places)
        inside = [place for place in range(start, stop) if place in places]
        assert all(later - earlier <= gap + 1 for earlier, later in pairwise(inside))


def test_a_row_of_pages_is_one_run() -> None:
    assert list(page_runs(np.arange(100, 200), np.arange(100), 1000, 0)) == [(0, 100)]
    assert list(page_runs(np.arange(100, 200), np.arange(100), 128, 0)) == [(0, 28), (28, 100)]
    assert list(page_runs(np.arange(100), np.array([3, 5, 9]), 1000, 1)) == [(3, 6), (9, 10)]


@given(
    count=st.integers(0, 23),
    pages=st.integers(1, 9),
    prefetched=st.booleans(),
    everything=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_any_row_comes_through(count: int, pages: int, prefetched: bool, everything: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(40)[:count].astype(np.int64)
    wanted = None if everything else np.flatnonzero(generator.random(count) < 0.3)
    staging = Staging(torch.zeros(2, pages, 1, 2, 2, 2))
    if seed % 2:  # something else was there before
        for _ in staging.stream("before", host(40), np.arange(17), None):
            pass
        staging.prefetch("other", host(40), np.arange(9))
    if prefetched:
        staging.prefetch("this", host(40), numbers)
    seen: list[int] = []
    for start, stop, found in staging.stream("this", host(40), numbers, wanted):
        assert stop - start <= pages
        inside = [place for place in range(start, stop) if wanted is None or place in wanted]
        assert inside, "pieces without anything wanted are left out"
        assert found[[place - start for place in inside], 0, 1, 1, 1].tolist() == numbers[inside].tolist()
        found.fill_(-1)  # whoever is given a piece may do with it what it likes
        seen += inside
    assert seen == (list(range(count)) if wanted is None else wanted.tolist())


@given(
    count=st.integers(0, 23),
    pages=st.integers(1, 9),
    strip_pages=st.integers(1, 4),
    everything=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_any_row_of_codes_comes_through(count: int, pages: int, strip_pages: int, everything: bool, seed: int) -> None:
    """A few strips at a time, whatever they held before."""
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(40)[:count].astype(np.int64)
    wanted = None if everything else np.flatnonzero(generator.random(count) < 0.3)
    values = torch.arange(40).float().view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2).contiguous()
    strips = pack_pages(values, torch.int8)
    memory = HostPages(list(strips.split(5)), torch.zeros(9, dtype=torch.int64), True, torch.int8)
    staging = Staging(torch.zeros(2, pages, 1, 2, 2, 2), strip_pages)
    seen: list[int] = []
    for start, stop, found in staging.stream("this", memory, numbers, wanted):
        inside = [place for place in range(start, stop) if wanted is None or place in wanted]
        torch.testing.assert_close(
            found[[place - start for place in inside], 0, 1, 1, 1], torch.from_numpy(numbers[inside]).float()
        )
        assert found.isfinite().all()
        seen += inside
    assert seen == (list(range(count)) if wanted is None else wanted.tolist())
    assert staging.copied_bytes >= len(seen) * 2 * 2 * (2 + 2)
    assert staging.nbytes == strip_pages * 16


def test_what_was_asked_for_early_is_not_copied_again() -> None:
    staging, row = Staging(torch.zeros(2, 4, 1, 2, 2, 2)), np.arange(10)
    staging.prefetch("this", host(10), row)
    nothing = host(0)
    found = staging.stream("this", nothing, row[:8], None)
    assert [next(found)[2][0, 0, 0, 0, 0].item() for _ in range(2)] == [0, 4]


def test_written_and_read_back() -> None:
    memory, numbers = host(20), np.array([3, 4, 5, 19, 0, 18])
    values = torch.randn(6, 1, 2, 2, 2)
    write_pages(memory, numbers, values)
    target = torch.zeros(8, 1, 2, 2, 2)
    assert read_pages(memory, numbers, np.arange(6), target, NO_STRIPS) == values.nbytes
    assert torch.equal(target[:6], values)
    assert memory.page(6)[0, 0, 0, 0] == 6


def test_what_goes_to_the_host_lies_in_two_rows_that_take_turns() -> None:
    outbox = Outbox(Lane(CPU), (1, 2, 2, 2), torch.float32, CPU)
    outbox.reserve(3)
    first, second, third = (outbox.take(3) for _ in range(3))
    assert first.data_ptr() == third.data_ptr()
    first.fill_(1.0)
    second.fill_(2.0)
    assert (first == 1.0).all(), "the next layer's pages must not lie over those that are being sent"
    assert outbox.nbytes == 2 * (3 + 4) * first[0].nbytes


def test_more_pages_than_there_was_room_for() -> None:
    outbox = Outbox(Lane(CPU), (1, 2, 2, 2), torch.float32, CPU)
    outbox.reserve(1)
    outbox.take(2)
    outbox.sent()
    assert outbox.take(40).shape == (40, 1, 2, 2, 2)
