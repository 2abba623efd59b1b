"""Memory that runs out while a session works: given back, halved once, said in the log; else refused, nothing lost."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from naive_sala import random_ids
from replay import assert_same

from salalocal.cache.session_cache import SessionCache
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.out_of_memory import is_out_of_memory
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit

MakeEngine = Callable[..., Engine]
CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8.00 GiB of which"
PLACES = [
    ("salalocal.model.sparse_layer", "select_blocks", 1),
    ("salalocal.model.lightning_layer", "lightning_prefill", 1),
    ("salalocal.cache.attention_cache", "extend_compressed_keys", 2),
    ("salalocal.model.network", "add_rms_norm", 6),
]
FINAL = 120


@contextmanager
def running_out(module: str, op: str, calls: set[int], error: Exception | None = None) -> Iterator[list[int]]:
    """These calls of an op, counted from 1, find no memory."""
    home = importlib.import_module(module)
    real, made = getattr(home, op), []

    def die(*arguments: object) -> object:
        made.append(len(made) + 1)
        if made[-1] in calls:
            raise error or torch.OutOfMemoryError(CUDA_SAYS)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, op, die)
        yield made


def begun(engine: Engine) -> Session:
    session = engine.new_session(record_selection=True)
    session.prefill(random_ids(30), final_length=FINAL)
    return session


@pytest.mark.parametrize(("module", "op", "call"), PLACES, ids=str)
def test_a_chunk_is_halved_once(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, module: str, op: str, call: int
) -> None:
    engine, ids = make_engine(), random_ids(90, seed=1)
    session, expected = begun(engine), begun(engine)
    fork = session.fork()
    with running_out(module, op, {call}):
        session.prefill(ids, chunk_size=25, final_length=FINAL, checkpoints_at=[70])
    expected.prefill(ids[:13], chunk_size=13, final_length=FINAL)
    expected.prefill(ids[13:], chunk_size=13, final_length=FINAL, checkpoints_at=[70])
    assert_same(session, expected)
    (record,) = caplog.records
    assert record.getMessage() == "reading 25 tokens after 30 ran out of main memory; reading on in chunks of 13"
    for one, other in ((session, expected), (fork, begun(engine))):
        assert torch.equal(one.prefill(ids[:9]), other.prefill(ids[:9]))
        assert torch.equal(one.step(3), other.step(3))
        assert_same(one, other)


@pytest.mark.parametrize("error", [None, MemoryError(), RuntimeError("Triton Error [CUDA]: out of memory")], ids=repr)
def test_what_does_not_fit_either_way_is_refused(make_engine: MakeEngine, error: Exception | None) -> None:
    engine, ids = make_engine(), random_ids(90, seed=1)
    session, expected = begun(engine), begun(engine)
    expected.prefill(ids[:25], chunk_size=25, final_length=FINAL)
    op = PLACES[1][:2]
    with running_out(*op, {2, 3}, error) as made, pytest.raises(DoesNotFit) as refused:
        session.prefill(ids, chunk_size=25, final_length=FINAL)
    assert made == [1, 2, 3], "one chunk of 25, a second, and half of it"
    assert str(refused.value).startswith("reading 25 tokens after 55 ran out of main memory: ")
    assert str(refused.value).endswith(
        " MiB are free; close other programs or sessions, or read less at a time; what was read before is kept"
    )
    assert refused.value.needed_bytes == (5 << 29 if error is None else 0)
    assert ("2,560 MiB more were asked for" in str(refused.value)) == (error is None)
    assert refused.value.available_bytes > 0
    assert_same(session, expected)
    assert torch.equal(session.prefill(ids[25:], 20, FINAL), expected.prefill(ids[25:], 20, FINAL))
    assert_same(session, expected)


def test_chunks_are_halved_once_per_call(make_engine: MakeEngine) -> None:
    session = begun(make_engine())
    with running_out(*PLACES[1][:2], {1, 4}) as made, pytest.raises(DoesNotFit):
        session.prefill(random_ids(90), chunk_size=24, final_length=FINAL)
    assert made == [1, 2, 3, 4]
    assert session.length == 30 + 2 * 12
    with running_out(*PLACES[1][:2], {1}):
        session.prefill(random_ids(20), chunk_size=20, final_length=FINAL)
    assert session.length == 74


def test_room_and_checkpoints_are_tried_twice(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(), random_ids(60, seed=1)
    for op in ("reserve", "checkpoint"):
        session, expected, calls = begun(engine), begun(engine), 0
        real = getattr(SessionCache, op)
        for times, outcome in ((1, True), (2, False)):
            calls = 0

            def die(self: SessionCache, *arguments: object, times: int = times) -> object:
                nonlocal calls
                calls += 1
                if calls <= times:
                    raise MemoryError
                return real(self, *arguments)  # noqa: B023 - called before the next turn

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(SessionCache, op, die)
                if outcome:
                    session.prefill(ids[:20], chunk_size=20, checkpoints_at=[50])
                else:
                    with pytest.raises(DoesNotFit):
                        session.prefill(ids[20:], chunk_size=20, checkpoints_at=[70])
        expected.prefill(ids[:20], chunk_size=20)
        if op == "checkpoint":
            expected.prefill(ids[20:40], chunk_size=20, final_length=90)
        assert_same(session, expected)
        assert torch.equal(session.step(3), expected.step(3))


@pytest.mark.parametrize("is_graphed", [False, True])
def test_a_step_is_tried_twice(make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, is_graphed: bool) -> None:
    engine = make_engine("sls")
    session, expected = begun(engine), begun(engine)
    for each in (session, expected):
        if is_graphed:
            each._reader.decoder = DecodeGraph(each._network, each.max_tokens)
        each.step(1)
    op = ("salalocal.model.network", "add_rms_norm")
    with running_out(*op, {4}):
        session.step(2)
    expected.step(2)
    assert_same(session, expected)
    assert [record.getMessage() for record in caplog.records] == [
        "reading a token after 31 ran out of main memory; trying once more without what was kept for later"
    ]
    with running_out(*op, {4, 8}), pytest.raises(DoesNotFit, match="after 32 ran out of main memory"):
        session.step(3)
    assert_same(session, expected)
    assert session.logits is not None
    for token in (3, 4, 5):
        assert torch.equal(session.step(token), expected.step(token))
    assert_same(session, expected)


def test_a_step_begun_ahead_may_find_no_memory(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine("sls")
    session, expected = begun(engine), begun(engine)
    for each in (session, expected):
        each._reader.decoder = DecodeGraph(each._network, each.max_tokens)
    sampler, other = Sampler(Sampling()), Sampler(Sampling())

    def die(*_: object) -> object:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(DecodeGraph, "run_ahead", die)
        token = session.step_and_choose(1, sampler)
    assert token == expected.step_and_choose(1, other)
    assert session.step_and_choose(token, sampler) == expected.step_and_choose(token, other)
    assert_same(session, expected)


def test_readings_that_cannot_be_kept_leave_the_token_unread(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, expected = begun(make_engine("sls")), begun(make_engine("sls"))
    for each in (session, expected):
        each._reader.decoder = DecodeGraph(each._network, each.max_tokens)

    def die(*_: object) -> object:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(session._reader.readings, "take_copy", die)
        with pytest.raises(DoesNotFit):
            session.step(1)
    assert_same(session, expected)
    assert torch.equal(session.step(1), expected.step(1))
    assert_same(session, expected)


def test_going_back_without_memory_changes_nothing(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    session, expected = begun(make_engine()), begun(make_engine())
    marks = [each.checkpoint() for each in (session, expected)]
    for each in (session, expected):
        each.prefill(random_ids(20, seed=2))

    def die(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", die)
        with pytest.raises(torch.OutOfMemoryError):
            session.rewind(marks[0])
    assert_same(session, expected)
    assert torch.equal(session.step(1), expected.step(1))


def test_what_says_out_of_memory() -> None:
    for error in (
        torch.OutOfMemoryError(CUDA_SAYS),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ):
        assert is_out_of_memory(error), error
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory")):
        assert not is_out_of_memory(error), error
