"""Steps begun ahead of their token, among everything else a session may do: drawn orders, against a plain session.

On a processor a step is not recorded; here it leaves its results where a replay would, over those of the step but one.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from replay import assert_same

from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine import decode_graph
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.model.network import Network

VOCABULARY = 40
MOST_TOKENS = 400


@pytest.fixture(autouse=True)
def _as_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms are 8 tokens apart at least, and a side's logits lie in the same memory for as long as its recording."""
    run = DecodeGraph._run

    def run_into_place(self: DecodeGraph, number: int, cache: SessionCache) -> None:
        assert self._sides is not None
        side = self._sides[number]
        before = side.result
        run(self, number, cache)
        if before is not None and side.result is not None:
            with torch.inference_mode():
                before.logits.copy_(side.result.logits)
            side.result = replace(side.result, logits=before.logits)

    monkeypatch.setattr(decode_graph, "ROOM_TOKENS", 8)
    monkeypatch.setattr(DecodeGraph, "_run", run_into_place)


class Twins:
    """A session that steps over memory that stays where it is, and a plain one; everything is done to both."""

    def __init__(self, one: Session, other: Session, sampling: Sampling) -> None:
        one._reader.decoder = DecodeGraph(one._network, MOST_TOKENS)
        self.one, self.other = one, other
        self.samplers = Sampler(sampling), Sampler(sampling)
        self.marks: list[tuple[Checkpoint, Checkpoint]] = []
        self.token = 3

    def answer(self, count: int) -> None:
        for _ in range(count):
            found = self.one.step_and_choose(self.token, self.samplers[0])
            expected = self.other.step_and_choose(self.token, self.samplers[1])
            assert found == expected
            self.token = found

    def both(self, call: Callable[[Session], object]) -> None:
        call(self.one)
        call(self.other)

    def checkpoint(self) -> None:
        self.marks.append((self.one.checkpoint(), self.other.checkpoint()))

    def rewind(self, number: int) -> None:
        if not self.marks:
            return
        del self.marks[number % len(self.marks) + 1 :]
        one, other = self.marks[-1]
        self.one.rewind(one)
        self.other.rewind(other)

    def fork(self, sampling: Sampling) -> Twins:
        made = Twins(self.one.fork(), self.other.fork(), sampling)
        made.marks = list(self.marks)
        return made

    def die(self, monkeypatch: pytest.MonkeyPatch, home: type, name: str, call: Callable[[Session], object]) -> None:
        """The call of the one is interrupted; what it has read by then, the other reads."""

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        before = self.one.length
        with monkeypatch.context() as patch:
            patch.setattr(home, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                call(self.one)
        for token in self.one.token_ids[before:]:
            self.other.step(token)

    def check(self, with_logits: bool) -> None:
        assert self.one.token_ids == self.other.token_ids
        assert self.one.length == self.other.length
        for layer in self.one._network.config.lightning_layers:
            found, expected = self.one.linear_state(layer), self.other.linear_state(layer)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        if with_logits and self.other.logits is not None:
            torch.testing.assert_close(self.one.logits, self.other.logits, rtol=1e-9, atol=1e-9)


def one_thing(twins: list[Twins], draw: random.Random, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """Does something to one of them, and says what."""
    pair = draw.choice(twins)
    what = draw.choice(
        ["answer", "answer", "answer", "answer", "step", "prompt", "checkpoint", "rewind", "fork", "common", "watch",
         "draw", "save", "die choosing", "die beginning", "die stepping", "die reading"]
    )  # fmt: skip
    tokens = [draw.randrange(VOCABULARY) for _ in range(draw.randint(2, 11))]
    if what == "answer":
        pair.answer(draw.randint(1, 9))
    elif what == "step":
        pair.both(lambda session: session.step(tokens[0]))
    elif what == "prompt":
        pair.both(lambda session: session.prefill(tokens))
    elif what == "checkpoint":
        pair.checkpoint()
    elif what == "rewind":
        pair.rewind(draw.randrange(9))
    elif what == "fork" and len(twins) < 4:
        sampling = Sampling(temperature=draw.choice([0.0, 1.5]), seed=draw.randrange(3))
        twins.append(pair.fork(sampling))
    elif what == "common":
        kept = [*pair.one.token_ids[: draw.randint(1, pair.one.length)], *tokens]
        read = [session.keep_common(kept) for session in (pair.one, pair.other)]
        assert read[0] == read[1]
        pair.marks = [mark for mark in pair.marks if mark[0].position <= pair.one.length]
        pair.both(lambda session: session.prefill(kept[read[0] :]))
    elif what == "watch":
        pair.one.is_watched = not pair.one.is_watched
    elif what == "draw" and pair.other.logits is not None:
        drawn = [sampler(pair.other.logits) for sampler in pair.samplers]
        assert drawn[0] == drawn[1]
    elif what == "save":
        pair.one.save(folder)
    elif what == "die choosing":
        pair.die(monkeypatch, DecodeGraph, "chosen", lambda one: one.step_and_choose(pair.token, pair.samplers[0]))
    elif what == "die beginning":
        pair.die(monkeypatch, DecodeGraph, "run_ahead", lambda one: one.step_and_choose(pair.token, pair.samplers[0]))
    elif what == "die stepping":
        pair.die(monkeypatch, DecodeGraph, "_result", lambda one: one.step(tokens[0]))
    elif what == "die reading":
        pair.die(monkeypatch, Network, "logits", lambda one: one.prefill(tokens))
    return what


@pytest.mark.parametrize("is_tiered", [False, True], ids=["on the device", "in host memory"])
@pytest.mark.parametrize("seed", range(12))
def test_a_session_is_one_that_never_began_ahead(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, is_tiered: bool
) -> None:
    draw = random.Random(seed)
    plain = make_engine(["sls", "lsl", "l", "s"][seed % 4], dtype="float64")
    engine = copy.copy(plain)
    layers = len(plain._network.config.sparse_layers)
    if is_tiered and layers:
        # Just as many slots as a token needs, and pieces of 7 blocks.
        engine._tiers = TieredStore(layers, 2, 4, 4, torch.float64, torch.device("cpu"), 12, 7, 1 << 12)
    first = Twins(engine.new_session(), plain.new_session(), Sampling(temperature=draw.choice([0.0, 1.5]), seed=seed))
    start = [draw.randrange(VOCABULARY) for _ in range(13)]
    first.both(lambda session: session.prefill(start))
    twins = [first]
    done: list[str] = []
    for number in range(60):
        done.append(one_thing(twins, draw, monkeypatch, tmp_path / str(number)))
        for pair in twins:
            pair.check(with_logits=draw.random() < 0.3)
        if max(pair.one.length for pair in twins) > MOST_TOKENS - 20:
            break
    for pair in twins:
        pair.answer(3)
        pair.check(with_logits=True)
        pair.one.save(tmp_path / "end")
        assert_same(engine.restore(tmp_path / "end"), pair.one)
    assert {"answer", "rewind", "fork"} & set(done)


def test_a_prompt_that_dies_behind_a_step_begun_ahead(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written its own keys where the step wrote those of the chosen token."""
    engine = make_engine("sls", dtype="float64")
    pair = Twins(engine.new_session(), engine.new_session(), Sampling())
    pair.both(lambda session: session.prefill(list(range(30))))
    pair.answer(3)
    assert pair.one.launched == pair.one.length + 1
    pair.die(monkeypatch, Network, "logits", lambda one: one.prefill([1, 2, 3]))
    assert pair.one.length == pair.other.length
    pair.answer(9)
    pair.check(with_logits=True)
