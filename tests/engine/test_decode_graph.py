"""Steps over memory that stays where it is: the same as ordinary ones, through everything a session may do in between.

On a processor they run without being recorded. What only a recording can get wrong is in the tests for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from naive_sala import random_ids
from replay import assert_same

from salalocal.cache.session_cache import SessionCache
from salalocal.engine import decode_graph
from salalocal.engine.decode_graph import CannotRecord, DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.reader import Reader
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session

MakeEngine = Callable[..., Engine]
DENSE_LEN = 24  # of the tiny models: blocks of 4
SPARSE_LAYERS = (0, 2)


def graphed(session: Session) -> Session:
    session._reader.decoder = DecodeGraph(session._network, session.max_tokens)
    return session


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The room of every step that is recorded, 8 tokens apart at least."""
    made: list[int] = []
    begin = DecodeGraph._begin

    def count(self: DecodeGraph, cache: object, kind: object, room: tuple[int, int], held: object) -> None:
        made.append(room[1])
        begin(self, cache, kind, room, held)

    monkeypatch.setattr(decode_graph, "ROOM_TOKENS", 8)
    monkeypatch.setattr(DecodeGraph, "_begin", count)
    return made


class Pair:
    """A session that steps over static memory and one that does not, kept alike."""

    def __init__(self, one: Session, other: Session) -> None:
        self.one, self.other = one, other

    @staticmethod
    def new(engine: Engine, **options: bool) -> Pair:
        return Pair(graphed(engine.new_session(**options)), engine.new_session(**options))

    def prefill(self, ids: list[int]) -> None:
        torch.testing.assert_close(self.one.prefill(ids), self.other.prefill(ids), rtol=1e-9, atol=1e-9)

    def step(self, *tokens: int) -> None:
        for token in tokens:
            torch.testing.assert_close(self.one.step(token), self.other.step(token), rtol=1e-9, atol=1e-9)
            self.check()

    def fork(self) -> Pair:
        return Pair(graphed(self.one.fork()), self.other.fork())

    def check(self) -> None:
        assert self.one.token_ids == self.other.token_ids
        assert self.one.length == self.other.length
        for layer in self.one._network.config.lightning_layers:
            found, expected = self.one.linear_state(layer), self.other.linear_state(layer)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 5, DENSE_LEN - 3, DENSE_LEN + 6, 70], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize("mixers", ["sls", "l", "s"])
def test_steps_from_nothing_over_the_switch_and_on(make_engine: MakeEngine, mixers: str, length: int) -> None:
    pair = Pair.new(make_engine(mixers, dtype="float64"))
    pair.prefill(random_ids(length))
    pair.step(*random_ids(12, seed=1))


@pytest.mark.parametrize(
    "changes",
    [{"attn_use_rope": True}, {"qk_norm": False, "use_output_gate": False, "use_output_norm": False}],
    ids=str,
)
def test_other_layers(make_engine: MakeEngine, changes: dict[str, object]) -> None:
    pair = Pair.new(make_engine("sls", dtype="float64", **changes))
    pair.prefill(random_ids(20))
    pair.step(*random_ids(9, seed=1))


@pytest.mark.usefixtures("recordings")
def test_prompts_rewinds_and_forks_in_between(make_engine: MakeEngine) -> None:
    pair = Pair.new(make_engine(dtype="float64"))
    pair.prefill(random_ids(30))
    marks = pair.one.checkpoint(), pair.other.checkpoint()
    pair.step(1, 2, 3)
    fork = pair.fork()
    fork.step(9, 8, 7)
    pair.step(4, 5)
    pair.prefill(random_ids(11, seed=2))
    pair.step(6)
    fork.step(6, 5)
    pair.one.rewind(marks[0])
    pair.other.rewind(marks[1])
    pair.check()
    pair.step(3, 2, 1)
    fork.step(4)
    kept = pair.one.keep_common([*random_ids(30), 3, 9]), pair.other.keep_common([*random_ids(30), 3, 9])
    assert kept[0] == kept[1]
    pair.step(9)


def test_a_step_is_recorded_again_only_where_something_moved(make_engine: MakeEngine, recordings: list[int]) -> None:
    session = graphed(make_engine().new_session())
    session.prefill(random_ids(30))
    session.step(1)
    session.step(2)
    assert recordings == [32]
    for token in range(8):
        session.step(token)
    assert recordings == [32, 40], "33 to 40 tokens"
    session.is_watched = True
    session.step(1)
    session.is_watched = False
    session.step(1)
    assert recordings == [32, 40, 48, 48], "41 tokens, watched and then not"
    session.rewind(session.checkpoints[0])
    session.prefill(random_ids(41))
    session.step(1)
    assert len(recordings) == 4, "going back and reading on moves nothing"
    fork = graphed(session.fork())
    session.step(1)
    assert len(recordings) == 4, "who was forked stays where it is"
    fork.step(1)
    session.step(2)
    fork.step(2)
    assert len(recordings) == 5, "the fork's own"


def test_what_was_read_is_told(make_engine: MakeEngine, recordings: list[int]) -> None:
    pair = Pair.new(make_engine(dtype="float64"), record_selection=True)
    pair.one.is_watched = pair.other.is_watched = True
    pair.prefill(random_ids(DENSE_LEN - 4))
    for token in random_ids(9, seed=1):
        pair.step(token)
        for layer in SPARSE_LAYERS:
            found, expected = pair.one.selected_blocks(layer), pair.other.selected_blocks(layer)
            assert (found is None) == (expected is None) == (pair.one.length < DENSE_LEN)
            assert found is None or torch.equal(found, expected)
            (blocks, mass), (others, other_mass) = pair.one.attention_mass(layer), pair.other.attention_mass(layer)
            assert torch.equal(blocks, others)
            torch.testing.assert_close(mass, other_mass, rtol=1e-6, atol=1e-7)
    kept = pair.one.attention_mass(0)[1].clone(), pair.one.attention_mass(0)[1]
    pair.step(1)
    assert torch.equal(*kept), "what was handed out is not overwritten"
    assert recordings


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, seed=5), Sampling(temperature=2.0, top_k=9, top_p=0.9, seed=1)]
)
def test_choosing_in_the_step_chooses_as_outside(make_engine: MakeEngine, sampling: Sampling) -> None:
    pair = Pair.new(make_engine(dtype="float64"))
    answers = []
    for session in (pair.one, pair.other):
        session.prefill(random_ids(30))
        sampler = Sampler(sampling)
        assert session.logits is not None
        tokens = [sampler(session.logits)]
        tokens += [session.step_and_choose(tokens[-1], sampler) for _ in range(12)]
        answers.append(tokens)
    assert answers[0] == answers[1]
    pair.check()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The position of every step that is run."""
    made: list[int] = []
    run = DecodeGraph._run

    def count(self: DecodeGraph, number: int, cache: SessionCache) -> None:
        made.append(int(self._inputs[1]))
        run(self, number, cache)

    monkeypatch.setattr(DecodeGraph, "_run", count)
    return made


def answer(session: Session, sampler: Sampler, tokens: list[int], count: int) -> None:
    for _ in range(count):
        tokens.append(session.step_and_choose(tokens[-1], sampler))


def test_the_next_step_begins_before_the_token_is_read(make_engine: MakeEngine, runs: list[int]) -> None:
    session = graphed(make_engine(dtype="float64").new_session())
    session.prefill(random_ids(30))
    answer(session, Sampler(Sampling()), [3], 5)
    assert runs == [30, 31, 32, 33, 34, 35], "each once, and one that nobody has asked for yet"
    assert (session.length, session.launched) == (35, 36)
    session.step(9)
    assert runs[-1] == 35
    assert len(runs) == 7, "another token than the chosen one"
    assert session.launched == session.length, "a step that chooses nothing names no next token"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=5)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("between", ["token", "draw", "prompt", "rewind", "fork", "checkpoint", "switch", "watch"])
def test_a_step_begun_ahead_does_no_harm(
    make_engine: MakeEngine, recordings: list[int], between: str, sampling: Sampling
) -> None:
    """Whatever comes between two steps, the session is one that never began ahead."""
    pair = Pair.new(make_engine(dtype="float64"))
    start = DENSE_LEN - 5 if between == "switch" else 30
    pair.prefill(random_ids(start))
    marks = pair.one.checkpoint(), pair.other.checkpoint()
    samplers = Sampler(sampling), Sampler(sampling)
    answers = [3], [3]

    def go_on(count: int) -> None:
        for session, sampler, tokens in zip((pair.one, pair.other), samplers, answers, strict=True):
            answer(session, sampler, tokens, count)
        assert answers[0] == answers[1]
        pair.check()

    go_on(6)
    forks = []
    for session, sampler, tokens, mark in zip((pair.one, pair.other), samplers, answers, marks, strict=True):
        if between == "token":
            tokens.append((tokens[-1] + 1) % 40)
        elif between == "draw":
            sampler(session.logits)
        elif between == "prompt":
            session.prefill(random_ids(7, seed=3))
        elif between == "rewind":
            session.rewind(mark)
            session.prefill(random_ids(session.length + 6 - mark.position, seed=3))
        elif between == "fork":
            forks.append(session.fork())
        elif between == "checkpoint":
            session.checkpoint()
        elif between == "watch":
            session.is_watched = True
    if forks:
        graphed(forks[0])
        for fork in forks:
            fork.prefill(random_ids(5, seed=4))
            fork.step(2)
    go_on(6)
    assert recordings
    if forks:
        Pair(*forks).step(1, 2)


def test_logits_that_were_handed_out_stay(make_engine: MakeEngine) -> None:
    session = graphed(make_engine().new_session())
    first = session.step(1)
    kept, own = first.clone(), session.logits
    session.step(2)
    assert torch.equal(first, kept)
    assert own is not None
    assert torch.equal(own, kept)


def test_an_interrupt_behind_the_step_leaves_a_whole_token(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = graphed(make_engine().new_session()), graphed(make_engine().new_session())
    for session in (one, other):
        session.prefill(random_ids(30))
        session.step(1)
    other.step(2)
    take_over, calls = Reader._take_over, []

    def interrupted(self: Reader, *arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        take_over(self, *arguments)

    monkeypatch.setattr(Reader, "_take_over", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.step(2)
    assert_same(one, other)
    assert torch.equal(one.step(3), other.step(3))


def test_an_interrupt_before_the_step_leaves_nothing(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = graphed(make_engine().new_session()), graphed(make_engine().new_session())
    for session in (one, other):
        session.prefill(random_ids(30))
        session.step(1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DecodeGraph, "_run", die)
        with pytest.raises(KeyboardInterrupt):
            one.step(2)
    assert_same(one, other)
    assert torch.equal(one.step(3), other.step(3))


def test_a_model_that_cannot_be_recorded_goes_the_ordinary_way(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = graphed(make_engine().new_session()), make_engine().new_session()

    def refuse(*_: object) -> None:
        raise CannotRecord("block_scores: heads of 24 channels")

    monkeypatch.setattr(DecodeGraph, "_begin", refuse)
    for session in (one, other):
        session.prefill(random_ids(30))
        session.step(1)
        session.step_and_choose(2, Sampler(Sampling()))
    assert_same(one, other)
    (record,) = caplog.records
    assert record.getMessage() == "tokens are read without a CUDA graph: block_scores: heads of 24 channels"


def test_rooms_follow_from_the_length() -> None:
    rooms = [decode_graph.room_for(length) for length in (1, 4096, 4097, 40_000, 1_000_000)]
    assert rooms[:3] == [(0, 4096), (0, 4096), (4096, 8192)]
    assert all(
        low < length <= high for length, (low, high) in zip((1, 4096, 4097, 40_000, 1_000_000), rooms, strict=True)
    )
    assert all(high - low <= max(4096, low // 8) for low, high in rooms)
