"""Rewind, fork, cancel, resume and failures leave a session bit-equal to one that never knew them."""

from __future__ import annotations

import importlib
import random
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_sala import random_ids
from replay import Tracked, assert_same

from salalocal.engine import checkpoints
from salalocal.engine.engine import Engine
from salalocal.engine.progress import Progress
from salalocal.errors import Cancelled, InvalidRequest

MakeEngine = Callable[..., Engine]
# Blocks of 4, sparse from 24 tokens on, 6 of them read.
MIXERS = ["sls", "sss", "ll"]


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("at", [1, 15, 16, 17, 33])
def test_rewind_into_the_middle_of_a_block_and_read_on(make_engine: MakeEngine, mixers: str, at: int) -> None:
    tracked = Tracked.new(make_engine(mixers))
    tracked.read(random_ids(at), 60)
    checkpoint = tracked.session.checkpoint()
    tracked.read(random_ids(26, seed=1), 60)
    tracked.read([7])
    tracked.rewind(checkpoint)
    tracked.check()
    tracked.read(random_ids(31, seed=2))
    tracked.check()


@pytest.mark.parametrize("mixers", MIXERS)
def test_fork_then_diverge_both_ways(make_engine: MakeEngine, mixers: str) -> None:
    one = Tracked.new(make_engine(mixers))
    one.read(random_ids(30))
    two = one.fork()
    for step in range(9):  # over two block edges, in turns
        one.read([step])
        two.read([20 + step])
    three = two.fork()
    three.read(random_ids(10, seed=3))
    two.read(random_ids(11, seed=4))
    one.read(random_ids(12, seed=5))
    for tracked in (one, two, three):
        tracked.check()


def test_a_fork_rewinds_to_a_checkpoint_of_the_common_past(make_engine: MakeEngine) -> None:
    one = Tracked.new(make_engine())
    one.read(random_ids(18))
    early = one.session.checkpoint()
    one.read(random_ids(9, seed=1))
    two = one.fork()
    two.rewind(early)
    two.read(random_ids(9, seed=2))
    one.read([1])
    one.check()
    two.check()
    own = two.session.checkpoint()
    with pytest.raises(InvalidRequest, match="of another session"):
        one.session.rewind(own)


def test_dropped_forks_give_their_pages_back(make_engine: MakeEngine) -> None:
    one = Tracked.new(make_engine())
    one.read(random_ids(30))
    for _ in range(3):
        two = one.fork()
        two.read(random_ids(200, seed=1))
        del two
    once = one.session.nbytes
    for _ in range(10):
        two = one.fork()
        two.read(random_ids(200, seed=2))
        del two
    assert one.session.nbytes == once, "a dropped fork's pages serve the next"
    one.read(random_ids(100, seed=3))
    one.check()


@pytest.mark.parametrize("mixers", MIXERS)
def test_cancel_and_resume(make_engine: MakeEngine, mixers: str) -> None:
    engine, ids = make_engine(mixers), random_ids(75)
    session, cancel = engine.new_session(), threading.Event()

    def stop_after_two(progress: Progress) -> None:
        if progress.done_tokens == 20:
            cancel.set()

    with pytest.raises(Cancelled) as stopped:
        session.prefill(ids, chunk_size=10, on_progress=stop_after_two, cancel=cancel)
    assert stopped.value.length == session.length == 20
    session.prefill(ids[20:], chunk_size=10, final_length=75)
    fresh = engine.new_session()
    fresh.prefill(ids, chunk_size=10)
    assert_same(session, fresh)


def test_cancelled_before_the_first_chunk(make_engine: MakeEngine) -> None:
    engine, cancel = make_engine(), threading.Event()
    cancel.set()
    session = engine.new_session()
    with pytest.raises(Cancelled) as stopped:
        session.prefill(random_ids(30), cancel=cancel)
    assert (stopped.value.length, session.length, session.logits) == (0, 0, None)
    tracked = Tracked(engine, session)
    tracked.read(random_ids(30))
    tracked.check()


def test_an_abandoned_reading_keeps_its_chunks(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(), random_ids(40)
    session = engine.new_session()
    steps = session.read(ids, chunk_size=16)
    next(steps)
    next(steps)
    assert session.length == 32
    session.prefill(ids[32:])
    fresh = engine.new_session()
    fresh.prefill(ids, chunk_size=16)
    assert_same(session, fresh)
    with pytest.raises(InvalidRequest, match="went from 32 to 40 tokens while it was being read"):
        next(steps)
    assert_same(session, fresh)


def test_a_reading_does_not_go_on_in_a_rewound_session(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    steps = session.read(random_ids(40), chunk_size=16)
    next(steps)
    session.rewind(session.checkpoints[0])
    with pytest.raises(InvalidRequest, match="went from 16 to 0"):
        next(steps)


# Ops of the network in which a chunk of the "sls" model can die, by the module that calls them.
PLACES = [
    ("salalocal.model.sparse_layer", "block_scores", 2),
    ("salalocal.model.pieces", "sparse_attention_prefill", 1),
    ("salalocal.model.pieces", "sparse_attention_prefill", 2),
    ("salalocal.model.lightning_layer", "lightning_prefill", 1),
    ("salalocal.cache.attention_cache", "extend_compressed_keys", 1),
    ("salalocal.cache.attention_cache", "extend_compressed_keys", 2),
    ("salalocal.model.network", "rms_norm", 1),
    ("salalocal.model.network", "add_rms_norm", 5),
    ("salalocal.model.network", "add_rms_norm", 6),  # before the head: every layer has been read
]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize(("module", "op", "call"), PLACES, ids=str)
def test_a_chunk_that_dies_leaves_no_trace(
    make_engine: MakeEngine,
    module: str,
    op: str,
    call: int,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = importlib.import_module(module)
    real, calls = getattr(home, op), []

    def die(*args: object) -> object:
        calls.append(op)
        if len(calls) == call:
            raise error
        return real(*args)

    tracked = Tracked.new(make_engine())
    tracked.read(random_ids(30), 90)
    other = tracked.fork()  # so that the dying chunk copies a page on write
    before = tracked.session.selected_blocks(0)
    with monkeypatch.context() as patch:
        patch.setattr(home, op, die)
        with pytest.raises(error):
            tracked.session.prefill(random_ids(41, seed=9), chunk_size=41, final_length=90)
    assert len(calls) == call, "the chunk did not get as far as it should"
    assert before is not None
    assert tracked.session.selected_blocks(0) is None, "nothing of that call was read"

    third = tracked.fork()
    tracked.read(random_ids(20, seed=1), 90)
    assert tracked.session.selected_blocks(2).shape[1] == 20
    third.read(random_ids(20, seed=2), 90)
    other.read(random_ids(20, seed=3), 90)
    for each in (tracked, other, third):
        each.check()


def test_a_step_that_dies_leaves_no_trace(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its last layer, when the states of the layers before it are already computed."""
    tracked = Tracked.new(make_engine("sls"))
    tracked.read(random_ids(30))

    def die(*_: object) -> object:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr("salalocal.model.network.Network.logits", die)
        with pytest.raises(ZeroDivisionError):
            tracked.session.step(3)
    tracked.check()
    tracked.read([7])
    tracked.check()


def test_a_callback_that_raises_keeps_the_chunk(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(), random_ids(40)
    session = engine.new_session()

    def fail(_: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.prefill(ids, chunk_size=16, on_progress=fail)
    assert session.length == 16
    session.prefill(ids[16:], chunk_size=16, final_length=40)
    fresh = engine.new_session()
    fresh.prefill(ids, chunk_size=16)
    assert_same(session, fresh)


def test_a_checkpoint_thinned_out_stays_good_while_it_is_held(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = Tracked.new(make_engine())
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BUDGET_BYTES", 4 * tracked.session.checkpoints[0].nbytes)
    held = []
    for step in range(12):
        tracked.read(random_ids(5, seed=step))
        held.append(tracked.session.checkpoint())
    kept = [known.position for known in tracked.session.checkpoints]
    assert kept[0] == 0
    assert kept[-1] == 60
    assert len(kept) <= 4
    gone = next(known for known in held if known.position not in kept)
    fork = tracked.fork()
    for each in (tracked, fork):
        each.rewind(gone)
        each.read(random_ids(8, seed=50))
        each.check()
    with pytest.raises(InvalidRequest, match="rewound past it"):
        tracked.session.rewind(held[-1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 40), mixers=st.sampled_from(MIXERS), is_dense=st.booleans())
def test_any_history(make_engine: MakeEngine, seed: int, mixers: str, is_dense: bool) -> None:
    dice = random.Random(seed)
    changes = {"sparse_config": None} if is_dense else {}
    sessions = [Tracked.new(make_engine(mixers, **changes))]
    for _ in range(12):
        tracked = dice.choice(sessions)
        choice = dice.randrange(10)
        if choice < 4:
            count = dice.choice([1, 2, 3, 5, 8, 24, 30])
            ids = [dice.randrange(40) for _ in range(count)]
            tracked.read(ids, tracked.session.length + count + dice.choice([0, 0, 30]))
        elif choice < 6:
            tracked.read([dice.randrange(40)])
        elif choice < 7:
            tracked.session.checkpoint()
        elif choice < 9:
            tracked.rewind(dice.choice(tracked.session.checkpoints))
        elif len(sessions) < 4:
            sessions.append(tracked.fork())
        if dice.random() < 0.3:
            tracked.session.checkpoint()
    for tracked in sessions:
        tracked.check()


def test_threads_do_not_change_a_bit(make_engine: MakeEngine) -> None:
    """The comparisons above would be worth little if the same call gave other bits another time."""
    engine, ids = make_engine(), random_ids(70)
    runs = [engine.new_session().prefill(ids, chunk_size=33, all_logits=True) for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
