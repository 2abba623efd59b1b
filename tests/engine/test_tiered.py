"""K and V in host memory: a session whose context exceeds its budget computes what one without a budget computes.

On a processor the same code runs with plain memory; what only a GPU can get wrong is in the tests for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same

import salalocal
from salalocal.cache.session_cache import SessionCache
from salalocal.cache.tiered_attention import TieredAttention
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import Cancelled, DoesNotFit, InvalidRequest

# Blocks of 4 tokens, 2 kv heads; a query reads 6 blocks. A pool that is just large enough, and pieces of 7 blocks.
SLOTS, STAGED = 12, 7
SPARSE_LAYERS = (0, 2, 3)
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), tiny_config("slss"))


@pytest.fixture(scope="module")
def resident(folder: Path) -> Engine:
    return salalocal.load(folder, device="cpu", dtype="float32")


@pytest.fixture
def tiered(folder: Path) -> Callable[..., Engine]:
    """tiered(slots, staged): an engine whose host memory comes in segments of 5 pages."""

    def make(slots: int = SLOTS, staged: int = STAGED) -> Engine:
        engine = salalocal.load(folder, device="cpu", dtype="float32", kv_budget=1 << 20)
        tiers = TieredStore(3, 2, 4, 4, torch.float32, torch.device("cpu"), slots, staged, 5 * 3 * 2 * 2 * 4 * 4 * 4)
        assert tiers.host.per_segment == 5
        engine._tiers = tiers
        return engine

    return make


def graphed(session: Session) -> Session:
    session._reader.decoder = DecodeGraph(session._network, session.max_tokens)
    return session


class Pair:
    """A session in host memory and one on the device, kept alike."""

    def __init__(self, one: Session, other: Session) -> None:
        self.one, self.other = one, other

    @staticmethod
    def new(tiered: Engine, resident: Engine, is_graphed: bool = True) -> Pair:
        one, other = (engine.new_session(record_selection=True) for engine in (tiered, resident))
        return Pair(graphed(one), graphed(other)) if is_graphed else Pair(one, other)

    def read(self, ids: list[int], chunk: int = 1 << 20, final_length: int | None = None) -> None:
        found, expected = (each.prefill(ids, chunk, final_length, all_logits=True) for each in (self.one, self.other))
        torch.testing.assert_close(found, expected, **ROUNDING)
        self.check()

    def step(self, *tokens: int) -> None:
        for token in tokens:
            torch.testing.assert_close(self.one.step(token), self.other.step(token), **ROUNDING)
            self.check()

    def fork(self) -> Pair:
        return Pair(graphed(self.one.fork()), graphed(self.other.fork()))

    def check(self) -> None:
        assert self.one.token_ids == self.other.token_ids
        for layer in SPARSE_LAYERS:
            selected = self.one.selected_blocks(layer), self.other.selected_blocks(layer)
            assert (selected[0] is None) == (selected[1] is None)
            assert selected[0] is None or torch.equal(*selected)


@pytest.mark.parametrize("chunk", [1000, 50, 13, 2])
@pytest.mark.parametrize(("slots", "staged"), [(SLOTS, STAGED), (40, 11)])
def test_chunks_and_steps(tiered: Callable[..., Engine], resident: Engine, slots: int, staged: int, chunk: int) -> None:
    pair = Pair.new(tiered(slots, staged), resident)
    pair.read(random_ids(203), chunk)
    pair.step(*random_ids(30, seed=1))
    pair.read(random_ids(37, seed=2), chunk)
    pair.step(*random_ids(9, seed=3))


def test_a_few_tokens_behind_a_long_text_bring_what_they_read(tiered: Callable[..., Engine]) -> None:
    engine = tiered(staged=400)
    session = engine.new_session()
    session.prefill(random_ids(1200))
    before = session.traffic
    session.prefill(random_ids(3, seed=1))
    assert before is not None
    assert session.traffic is not None
    streamed = session.traffic.streamed_bytes - before.streamed_bytes
    # At most what 3 tokens of 2 heads choose, with pages between, in every layer; and the block that they go on with.
    assert 0 < streamed < 3 * 300 * (2 * 2 * 4 * 4 * 4) / 2, "less than half of the text"


def test_a_text_that_begins_takes_no_slot(tiered: Callable[..., Engine]) -> None:
    def missed(is_another_begun: bool) -> int:
        engine = tiered(slots=100)
        session = engine.new_session()
        session.prefill(random_ids(203))
        session.step(1)
        if is_another_begun:
            engine.new_session().prefill(random_ids(10, seed=1))
        session.step(2)
        assert session.traffic is not None
        return session.traffic.misses

    assert missed(True) == missed(False)


@pytest.mark.parametrize("chunk", [1000, 17, 1])
def test_where_one_piece_suffices_everything_is_bit_equal(
    tiered: Callable[..., Engine], resident: Engine, chunk: int
) -> None:
    one, other = (graphed(engine.new_session()) for engine in (tiered(staged=60), resident))
    for ids in (random_ids(19), random_ids(120, seed=1), random_ids(60, seed=2)):
        found, expected = (each.prefill(ids, chunk, all_logits=True) for each in (one, other))
        assert torch.equal(found, expected)
        for token in random_ids(9, seed=len(ids)):
            assert torch.equal(one.step(token), other.step(token))
    assert_same(one, other)


@pytest.mark.parametrize("is_graphed", [True, False])
def test_steps_are_bit_equal(tiered: Callable[..., Engine], resident: Engine, is_graphed: bool) -> None:
    """From the first token on, over the switch to sparse attention, with a pool that holds a small part."""
    one, other = (engine.new_session(record_selection=True) for engine in (tiered(), resident))
    if is_graphed:
        graphed(one), graphed(other)
    for token in random_ids(150):
        assert torch.equal(one.step(token), other.step(token))
    assert_same(one, other)
    traffic = one.traffic
    assert traffic is not None
    assert traffic.hits > traffic.misses > 0
    assert traffic.bytes == traffic.misses * 2 * 4 * 4 * 4
    assert other.traffic is None


def test_a_pool_that_holds_everything_fetches_once(tiered: Callable[..., Engine], resident: Engine) -> None:
    pair = Pair.new(tiered(slots=200), resident)
    pair.read(random_ids(100))
    pair.step(*random_ids(60, seed=1))
    traffic = pair.one.traffic
    assert traffic is not None
    assert traffic.misses <= 3 * 2 * 25, "blocks of the prompt; those of the answer are never away"


@pytest.mark.parametrize("slots", [SLOTS, 400])
def test_forks_rewinds_and_prompts_in_between(tiered: Callable[..., Engine], resident: Engine, slots: int) -> None:
    pair = Pair.new(tiered(slots), resident)
    pair.read(random_ids(130), 40)
    marks = pair.one.checkpoint(), pair.other.checkpoint()
    pair.step(1, 2, 3)
    fork = pair.fork()
    fork.step(9, 8, 7)
    pair.step(4, 5, *random_ids(9, seed=5))
    pair.read(random_ids(31, seed=2))
    pair.step(6)
    fork.step(6, 5)
    fork.read(random_ids(50, seed=7), 20)
    pair.one.rewind(marks[0])
    pair.other.rewind(marks[1])
    pair.step(3, 2, 1)
    pair.read(random_ids(60, seed=3))
    fork.step(*random_ids(12, seed=4))
    pair.step(*random_ids(12, seed=6))
    late, pair = pair.fork(), None  # type: ignore[assignment]
    late.read(random_ids(40, seed=8))
    late.step(7)


def test_a_copied_page_that_was_used_before(tiered: Callable[..., Engine], resident: Engine) -> None:
    """A slot may still hold what the page was before it was given back."""
    pair = Pair.new(tiered(slots=400), resident)
    pair.read(random_ids(50))
    marks = pair.one.checkpoint(), pair.other.checkpoint()
    pair.step(*random_ids(20, seed=1))
    pair.one.rewind(marks[0])
    pair.other.rewind(marks[1])
    fork = pair.fork()
    fork.step(1, 2)
    pair.step(3, 4)


@pytest.mark.parametrize("slots", [SLOTS, 400])
def test_sessions_share_the_pool(tiered: Callable[..., Engine], resident: Engine, slots: int) -> None:
    engine = tiered(slots)
    pairs = [Pair.new(engine, resident) for _ in range(3)]
    for number, pair in enumerate(pairs * 2):
        pair.read(random_ids(90, seed=number))
        pair.step(*random_ids(9))
    del pairs[1], pair
    again = Pair.new(engine, resident)
    again.read(random_ids(100, seed=9), 30)
    for each in (again, *pairs):
        each.step(*random_ids(5))


@pytest.mark.parametrize("is_graphed", [True, False])
def test_what_is_read_is_told(tiered: Callable[..., Engine], resident: Engine, is_graphed: bool) -> None:
    pair = Pair.new(tiered(), resident, is_graphed)
    pair.one.is_watched = pair.other.is_watched = True
    for ids in (random_ids(15), random_ids(100, seed=1)):
        pair.read(ids, 30)
        pair.step(3)
        for layer in SPARSE_LAYERS:
            (blocks, mass), (others, expected) = pair.one.attention_mass(layer), pair.other.attention_mass(layer)
            assert torch.equal(blocks, others)
            torch.testing.assert_close(mass, expected, **ROUNDING)


def test_choosing_in_the_step(tiered: Callable[..., Engine], resident: Engine) -> None:
    """Also where the next step was begun ahead for nothing."""
    answers = []
    for engine in (tiered(), resident):
        session, sampler = graphed(engine.new_session()), Sampler(Sampling(temperature=0.8, seed=5))
        tokens = [sampler(session.prefill(random_ids(90)))]
        for round_ in range(3):
            tokens += [session.step_and_choose(tokens[-1], sampler) for _ in range(12)]
            tokens.append(session.fork().step_and_choose(7, sampler))
            tokens.append(sampler(session.prefill(random_ids(9 * round_ + 1))))
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("length", [3, 64, 203])
def test_saved_and_restored_in_either_kind_of_memory(
    tiered: Callable[..., Engine], resident: Engine, tmp_path: Path, length: int
) -> None:
    one = graphed(tiered().new_session())
    one.prefill(random_ids(length), 50)
    one.checkpoint()
    one.step(1)
    one.save(tmp_path / "saved")
    one.prefill(random_ids(9, seed=1))
    one.save(tmp_path / "saved")
    restored = [graphed(engine.restore(tmp_path / "saved")) for engine in (tiered(), resident)]
    for each in restored:
        assert_same(each, one)
    for token in (5, 6, 7):
        logits = one.step(token)
        for each in restored:
            assert torch.equal(each.step(token), logits)
    again = tiered().restore(tmp_path / "saved")
    again.rewind(again.checkpoints[-1])
    fresh = tiered().new_session()
    fresh.prefill(random_ids(length), 50)
    assert torch.equal(again.prefill(random_ids(20, seed=4)), fresh.prefill(random_ids(20, seed=4)))


def test_saved_while_it_reads(tiered: Callable[..., Engine], tmp_path: Path) -> None:
    one = tiered().new_session(save_to=tmp_path / "saved")
    one.prefill(random_ids(150), 30, checkpoints_at=[60])
    one._saves._behind.wait()  # type: ignore[union-attr]
    assert_same(tiered().restore(tmp_path / "saved"), one)


def test_a_chunk_that_runs_out_of_memory_is_halved(tiered: Callable[..., Engine]) -> None:
    """In a layer whose history comes in pieces, when its own pages are already on their way to the host."""
    engine = tiered()
    one, other, bystander = (engine.new_session() for _ in range(3))
    for each in (one, other, bystander):
        each.prefill(random_ids(101), 30, final_length=300)
    pieces, calls = TieredAttention.pieces, []

    def die_once(self: TieredAttention, blocks: torch.Tensor) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return pieces(self, blocks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TieredAttention, "pieces", die_once)
        one.prefill(random_ids(60, seed=1), 40, final_length=300)
    assert len(calls) > 2
    # Takes the pages that were given back.
    bystander.prefill(random_ids(60, seed=2), 20, final_length=300)
    other.prefill(random_ids(60, seed=1), 20, final_length=300)
    assert_same(one, other)
    assert torch.equal(one.prefill(random_ids(30), 30), other.prefill(random_ids(30), 30))
    assert torch.equal(one.step(4), other.step(4))


def test_cancelled_and_failed_chunks_leave_nothing(
    tiered: Callable[..., Engine], resident: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair.new(tiered(), resident)
    pair.read(random_ids(101), 30)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        pair.one.prefill(random_ids(30), cancel=cancel)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SessionCache, "commit", fail)
    for ids in (random_ids(50, seed=9), [7]):
        with pytest.raises(KeyboardInterrupt):
            pair.one.prefill(ids)
    monkeypatch.undo()
    pair.step(1, 2, *random_ids(7))
    pair.read(random_ids(40, seed=2))


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="kv_budget is 3,000 bytes, and one step") as caught:
        salalocal.load(folder, device="cpu", dtype="float32", kv_budget=3000)
    engine = salalocal.load(folder, device="cpu", dtype="float32", kv_budget=caught.value.needed_bytes)
    assert engine._tiers is not None
    assert engine._tiers.device_bytes <= caught.value.needed_bytes
    session = graphed(engine.new_session())
    session.prefill(random_ids(99))
    session.step(1)
    dense = write_model(tmp_path / "lightning", tiny_config("ll"))
    with pytest.raises(InvalidRequest, match="sparse attention"):
        salalocal.load(dense, device="cpu", dtype="float32", kv_budget=1 << 20)


def test_the_longest_context_follows_from_both_memories(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from salalocal.engine import engine as module

    engine = salalocal.load(folder, device="cpu", dtype="float32", kv_budget=1 << 20)
    sizes = engine._sizes
    kv = sizes.token_bytes - sizes.compressed_token_bytes
    free = iter([1 << 40, int(1000 * kv) + 1])
    monkeypatch.setattr(module, "available_bytes", lambda _: next(free))
    assert engine.max_context_tokens() == 1000
    fixed = sizes.session_bytes + sizes.workspace_bytes + sizes.streaming_bytes
    free = iter([fixed + int(500 * sizes.compressed_token_bytes) + 1, 1 << 40])
    assert engine.max_context_tokens() == 500
