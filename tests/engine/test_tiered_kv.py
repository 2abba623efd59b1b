"""K and V of 8 bits in host memory: a session reads the same rounded numbers wherever they were in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same
from torch import Tensor

import salalocal
from salalocal.cache.kv_store import KVCache
from salalocal.cache.tiered_store import KV_CODES, TieredStore
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session
from salalocal.errors import InvalidRequest
from salalocal_kernels import pack_pages, unpack_pages

# Blocks of 4 tokens, 2 kv heads; a query reads 6 blocks. A pool that is just large enough, and one for everything.
SLOTS, MANY_SLOTS = 12, 400
# Pieces of 7 blocks, and one for the whole context.
STAGED, MUCH_STAGED = 7, 90
SPARSE_LAYERS = (0, 2, 3)
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}

pytestmark = pytest.mark.parametrize("kv", list(KV_CODES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), tiny_config("slss"))


@pytest.fixture
def tiered(folder: Path, kv: str) -> Callable[..., Engine]:
    """tiered(slots, staged): an engine whose host memory comes in segments of 5 pages."""

    def make(slots: int = SLOTS, staged: int = STAGED, dtype: str = "float32") -> Engine:
        engine = salalocal.load(folder, device="cpu", dtype=dtype, kv_budget=1 << 20, kv=kv)
        assert engine.kv == kv
        segment = 5 * 3 * 2 * 2 * 4 * (4 + 2)
        tiers = TieredStore(3, 2, 4, 4, engine.dtype, engine.device, slots, staged, segment, kv, strip_pages=3)
        assert tiers.host.per_segment == 5
        engine._tiers = tiers
        return engine

    return make


def opened(engine: Engine) -> Session:
    """A session whose steps run as a recorded one does."""
    session = engine.new_session(record_selection=True)
    session._reader.decoder = DecodeGraph(session._network, session.max_tokens)
    return session


def rounded(rows: Tensor, kv: str) -> Tensor:
    """Keys or values [T, Hkv, D] as they come back from the host."""
    pages = rows[:, :, None, None].expand(-1, -1, 2, -1, -1).contiguous()
    unpack_pages(pack_pages(pages, KV_CODES[kv]), KV_CODES[kv], pages)
    return pages[:, :, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_size_of_the_pool_changes_nothing(tiered: Callable[..., Engine], kv: str, dtype: str) -> None:
    """Blocks that were given away and fetched again are bit for bit those that stayed."""
    del kv
    one, other = (opened(tiered(slots, MUCH_STAGED, dtype)) for slots in (SLOTS, MANY_SLOTS))
    for count in (19, 120, 60):
        ids = random_ids(count, seed=count)
        assert torch.equal(one.prefill(ids, 33, all_logits=True), other.prefill(ids, 33, all_logits=True))
        for token in random_ids(25, seed=count + 1):
            assert torch.equal(one.step(token), other.step(token))
    assert_same(one, other)
    assert one.traffic is not None
    assert other.traffic is not None
    assert one.traffic.misses > other.traffic.misses > 0
    assert one.traffic.bytes == one.traffic.misses * 2 * 4 * (4 + 2)


@pytest.mark.parametrize("chunk", [1000, 50, 13, 2])
def test_chunks_of_any_size_and_pieces(tiered: Callable[..., Engine], kv: str, chunk: int) -> None:
    """Also bit-equal selections: the first layer's keys are the same, whoever has rounded them."""
    del kv
    one, other = opened(tiered()), opened(tiered(MANY_SLOTS, MUCH_STAGED))
    for ids in (random_ids(203), random_ids(37, seed=2)):
        found, expected = one.prefill(ids, chunk, all_logits=True), other.prefill(ids, all_logits=True)
        first, second = one.selected_blocks(0), other.selected_blocks(0)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)  # type: ignore[arg-type]
        # Logits of another layer may have been rounded the other way from a sum in another order.
        assert (found - expected).square().mean() <= 1e-4 * expected.square().mean()
        for token in random_ids(9, seed=3):
            one.step(token), other.step(token)


def test_as_if_keys_and_values_were_rounded_on_the_device(
    folder: Path, tiered: Callable[..., Engine], kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session without a budget that rounds them before it stores them computes the same bits."""
    write = KVCache.write
    monkeypatch.setattr(
        KVCache,
        "write",
        lambda self, layer, at, keys, values: write(self, layer, at, rounded(keys, kv), rounded(values, kv)),
    )
    one = tiered(staged=MUCH_STAGED).new_session(record_selection=True)
    other = salalocal.load(folder, device="cpu", dtype="float32").new_session(record_selection=True)
    for count, chunk in ((19, 5), (140, 33), (21, 50)):
        ids = random_ids(count, seed=count)
        assert torch.equal(one.prefill(ids, chunk, all_logits=True), other.prefill(ids, chunk, all_logits=True))
        for token in random_ids(30, seed=count + 1):
            assert torch.equal(one.step(token), other.step(token))
            for layer in SPARSE_LAYERS:
                found, expected = one.selected_blocks(layer), other.selected_blocks(layer)
                assert (found is None) == (expected is None)
                assert found is None or torch.equal(found, expected)  # type: ignore[arg-type]


def test_forks_and_going_back(tiered: Callable[..., Engine], kv: str) -> None:
    del kv
    sessions = [opened(tiered(slots, MUCH_STAGED)) for slots in (SLOTS, MANY_SLOTS)]
    answers = []
    for session in sessions:
        session.prefill(random_ids(130), 40)
        mark = session.checkpoint()
        found = [session.step(token) for token in (1, 2, 3)]
        fork = session.fork()
        found += [fork.step(token) for token in (9, 8, 7)]
        session.rewind(mark)
        found += [session.prefill(random_ids(31, seed=2)), session.step(6), fork.step(5)]
        found += [fork.prefill(random_ids(50, seed=7), 20), fork.step(4), session.step(4)]
        answers.append(found)
    for found, expected in zip(*answers, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("length", [3, 64, 203])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_restored(
    folder: Path, tiered: Callable[..., Engine], tmp_path: Path, kv: str, length: int, dtype: str
) -> None:
    """Bit-equal in the same kind of memory, since rounding what was rounded changes nothing; the device gets the same
    numbers, and rounds none of its own."""
    del kv
    one = tiered(dtype=dtype).new_session()
    one.prefill(random_ids(length), 50)
    one.step(1)
    one.save(tmp_path / "saved")
    resident = salalocal.load(folder, device="cpu", dtype=dtype)
    again, other = (engine.restore(tmp_path / "saved") for engine in (tiered(MANY_SLOTS, dtype=dtype), resident))
    for name, saved in one._cache.tokens(0, length + 1).items():
        assert torch.equal(again._cache.tokens(0, length + 1)[name], saved)
        assert torch.equal(other._cache.tokens(0, length + 1)[name], saved)
    for token in random_ids(20, seed=4):
        assert torch.equal(again.step(token), one.step(token))
    assert_same(again, one)
    other.step(5)


def test_a_full_session_is_rounded_when_it_is_restored(
    folder: Path, tiered: Callable[..., Engine], tmp_path: Path, kv: str
) -> None:
    full = salalocal.load(folder, device="cpu", dtype="float32").new_session()
    full.prefill(random_ids(203))
    full.save(tmp_path / "saved")
    one = tiered().restore(tmp_path / "saved")
    found = torch.cat([one._cache._kv.span(0, 0, 203)], 0)  # type: ignore[union-attr]
    expected = full._cache._kv.span(0, 0, 203)  # type: ignore[union-attr]
    for side in (0, 1):
        assert torch.equal(found[:, side], rounded(expected[:, side].transpose(0, 1), kv).transpose(0, 1))
    one.step(1)


def test_refusals(folder: Path, kv: str) -> None:
    with pytest.raises(InvalidRequest, match=f"kv in {kv} is for K and V in main memory beside a GPU"):
        salalocal.load(folder, device="cpu", kv=kv)
    with pytest.raises(InvalidRequest, match="kv is 'int3'; known are full, int8, fp8"):
        salalocal.load(folder, device="cpu", kv="int3", kv_budget=1 << 20)
    engine = salalocal.load(folder, device="cpu", dtype="float32", kv_budget=1 << 20, kv=kv)
    assert engine._tiers is not None
    assert engine._tiers.device_bytes <= 1 << 20
    assert engine._tiers.page_bytes == 3 * 2 * 2 * 4 * (4 + 2)
