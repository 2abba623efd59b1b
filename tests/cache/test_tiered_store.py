"""Host memory in segments, and what slots forget; what sessions compute with them is in the engine's tests."""

from __future__ import annotations

import pytest
import torch

from salalocal.cache import host_memory
from salalocal.cache.host_memory import HostMemory
from salalocal.cache.tiered_cache import TieredCache
from salalocal.cache.tiered_store import TieredStore

CPU = torch.device("cpu")


def store(slots: int = 8, layers: int = 2) -> TieredStore:
    """Pages of 2 kv heads, 4 tokens and 3 channels; 3 of them in a segment."""
    return TieredStore(layers, 2, 3, 4, torch.float32, CPU, slots, 5, 3 * layers * 2 * 2 * 4 * 3 * 4)


def test_segments_never_move_and_begin_where_the_device_is_told() -> None:
    memory = HostMemory(2, (2, 2, 4, 3), torch.bfloat16, CPU, segment_bytes=1000)
    assert (memory.page_bytes, memory.per_segment) == (192, 5)
    memory.reserve(5)
    layer = memory.layer(1)
    layer.page(4).fill_(7)
    address = layer.page(0).data_ptr()
    memory.reserve(6)
    assert memory.capacity == 10
    assert layer.page(0).data_ptr() == address == int(layer.addresses[0])
    assert layer.page(5).data_ptr() == int(layer.addresses[1]), "a layer's pages know of new segments"
    assert bool((layer.page(4) == 7).all())
    assert not layer.page(9).any(), "zeros: what is not written yet is multiplied by 0"
    assert not memory.layer(0).page(4).any()


def test_a_page_larger_than_a_segment() -> None:
    memory = HostMemory(1, (1, 2, 64, 64), torch.float32, CPU, segment_bytes=100)
    memory.reserve(2)
    assert memory.capacity == 2


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(1, (1, 2, 4, 4), torch.float32, CPU, segment_bytes=1 << 12)
    memory.reserve(1)

    def refuse(_: int) -> None:
        raise OSError

    monkeypatch.setattr(host_memory, "_zeros", refuse)
    with pytest.raises(MemoryError, match="32 pages fit"):
        memory.reserve(33)
    assert memory.capacity == 32


def test_seconds_of_registering_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 2.0, 2.25])
    monkeypatch.setattr(host_memory, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(host_memory, "register", lambda *_: "")
    monkeypatch.setattr(host_memory, "unregister", lambda *_: None)
    memory = HostMemory(1, (1, 2, 4, 4), torch.float32, torch.device("meta"), segment_bytes=1 << 12)
    memory.reserve(33)
    assert memory.pin_seconds == 0.75
    assert store().traffic.pin_seconds == 0, "nothing is registered for a processor"


def test_what_slots_held_of_a_page_is_forgotten() -> None:
    tiers = store()
    cache = TieredCache(tiers)
    cache.extend(0, 24)
    blocks = torch.tensor([[0, 2, 5], [1, 2, 5]], dtype=torch.int32)
    for index in range(2):
        tiers.layer(index).fetch(blocks, cache.page_table, 24, tiers.slot_table(6))
    tiers.forget([2, 4])
    for index in range(2):
        pool = tiers.layer(index).pool
        assert pool.slot_of[:, 2].tolist() == pool.slot_of[:, 4].tolist() == [-1, -1]
        assert sorted(pool.holds[:-1].tolist()) == [-1, -1, -1, -1, 0, 3, 10, 11]
        assert (pool.stamps[:-1] == 0).sum() == 4, "the slots are the first to be given away"
    before = tiers.traffic
    tiers.layer(0).fetch(blocks, cache.page_table, 24, tiers.slot_table(6))
    assert (tiers.traffic.hits - before.hits, tiers.traffic.misses - before.misses) == (4, 2)


def test_maps_grow_with_the_memory_and_keep_what_they_know() -> None:
    tiers = store()
    cache = TieredCache(tiers)
    cache.extend(0, 12)
    blocks = torch.tensor([[0, 1], [0, 2]], dtype=torch.int32)
    tiers.layer(0).fetch(blocks, cache.page_table, 12, tiers.slot_table(3))
    before, known = tiers.storage, tiers.layer(0).pool.slot_of.clone()
    cache.extend(12, 20)
    assert tiers.storage[1] is before[1], "there was room"
    cache.extend(20, 80)
    after = tiers.layer(0).pool.slot_of
    assert torch.equal(after[:, : known.shape[1]], known)
    assert (after[:, known.shape[1] :] == -1).all()


def test_pages_that_no_session_uses() -> None:
    tiers = store()
    one, two = TieredCache(tiers), TieredCache(tiers)
    one.extend(0, 20)
    two.extend(0, 9)
    assert tiers.free_pages == tiers.capacity - 8
    del one
    assert tiers.free_pages == tiers.capacity - 3


def test_spans_are_kept_and_given_back() -> None:
    cache = TieredCache(store())
    cache.extend(0, 30)
    values = torch.randn(2, 2, 22, 3)
    cache.keep_span(1, 8, values)
    assert torch.equal(cache.span(1, 8, 30), values)
    assert torch.equal(cache.span(1, 12, 29), values[:, :, 4:21])
    fork = cache.fork()
    fork.extend(30, 31)
    assert torch.equal(fork.span(1, 8, 30), values), "the last block was copied"
    fork.keep_span(1, 28, torch.zeros(2, 2, 2, 3))
    assert torch.equal(cache.span(1, 8, 30), values)


def test_room_for_what_is_not_read_takes_nothing_on_the_device() -> None:
    tiers = store()
    cache, before = TieredCache(tiers), (tiers.device_bytes, tiers.round)
    cache.make_room(400)
    assert len(cache.numbers) == 100
    assert (tiers.device_bytes, tiers.round) == before


def test_slots_and_buffers_are_the_same_memory() -> None:
    tiers = store()
    cache = TieredCache(tiers)
    cache.extend(0, 24)
    for number in range(6):
        tiers.host.layer(0).page(number).fill_(number + 1)
    blocks = torch.tensor([[0, 2, 5], [1, 2, 5]], dtype=torch.int32)

    def fetched() -> list[list[float]]:
        cache.extend(24, 25)
        table = tiers.slot_table(7)
        tiers.layer(0).fetch(blocks, cache.page_table, 25, table)
        slots = tiers.layer(0).pool.slots
        return [[slots[table[head, block]].mean().item() for block in blocks[head]] for head in range(2)]

    expected = [[1, 3, 6], [2, 3, 6]]
    assert fetched() == expected
    assert fetched() == expected
    assert (tiers.traffic.hits, tiers.traffic.misses) == (6, 6)
    staging = tiers.use_buffers()
    for start, stop, pages in staging.stream("a row", tiers.host.layer(0), cache.numbers[:6], None):
        assert pages[: stop - start].flatten(1).mean(1).tolist() == [1, 2, 3, 4, 5, 6][start:stop]
    assert fetched() == expected
    assert (tiers.traffic.hits, tiers.traffic.misses) == (6, 12), "what the buffers held is in no slot"
    assert staging._held == [None, None], "nor is a slot taken for what was staged"
