"""Recorded steps on an NVIDIA GPU: they compute what the same steps do unrecorded, and wait for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same

import salalocal
import salalocal_kernels
from salalocal.engine import decode_graph
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.model.network import Network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

DENSE_LEN = 60
SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "lightning_nkv": 2,
    "sparse_config": {"kernel_size": 8, "kernel_stride": 4, "init_blocks": 1, "block_size": 16, "window_size": 16,
                      "topk": 2, "dense_len": DENSE_LEN},
}  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    folder = write_model(tmp_path_factory.mktemp("model"), tiny_config("slsl", **SIZES))
    return lambda dtype="float32", device="cuda": salalocal.load(folder, device=device, dtype=dtype)


@pytest.fixture
def pair(load: Callable[..., Engine]) -> tuple[Session, Session]:
    """Two sessions of one engine that have read the same prompt, with sparse attention."""
    engine = load("bfloat16")
    one, other = engine.new_session(), engine.new_session()
    for session in (one, other):
        session.prefill(random_ids(70))
    return one, other


def is_recorded(session: Session) -> bool:
    assert session._reader.decoder is not None
    assert session._reader.decoder._sides is not None
    return all(side.graph is not None for side in session._reader.decoder._sides)


@pytest.mark.parametrize("length", [1, DENSE_LEN - 3, DENSE_LEN + 30])
def test_steps_are_those_of_a_processor(load: Callable[..., Engine], length: int) -> None:
    on_gpu, on_cpu = load("float32").new_session(), load("float64", "cpu").new_session()
    with salalocal_kernels.watch() as served:
        for session in (on_gpu, on_cpu):
            session.prefill(random_ids(length))
        for token in random_ids(12, seed=1):
            error = (on_gpu.step(token).cpu() - on_cpu.step(token)).abs().max()
            assert error < 1e-3
    assert served.fallbacks == {}
    assert is_recorded(on_gpu)
    for layer in (1, 3):
        assert (on_gpu.linear_state(layer).cpu() - on_cpu.linear_state(layer)).abs().max() < 1e-3


@pytest.mark.parametrize("is_watched", [False, True])
@pytest.mark.parametrize("length", [DENSE_LEN - 9, DENSE_LEN + 30])
def test_recorded_and_unrecorded_steps_are_bit_equal(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, length: int, is_watched: bool
) -> None:
    """The same step, replayed and run: whatever a replay keeps from the recording would show."""
    engine = load("bfloat16")
    one, other = engine.new_session(record_selection=True), engine.new_session(record_selection=True)
    one.is_watched = other.is_watched = is_watched
    for session in (one, other):
        session.prefill(random_ids(length))
    for token in random_ids(20, seed=1):
        with monkeypatch.context() as patch:
            found = one.step(token)
            patch.setattr(DecodeGraph, "_capture", lambda *_: None)
            assert torch.equal(found, other.step(token))
        for layer in (0, 2):
            selected = one.selected_blocks(layer), other.selected_blocks(layer)
            assert (selected[0] is None) == (selected[1] is None)
            assert selected[0] is None or torch.equal(*selected)
            if is_watched:
                for found, expected in zip(one.attention_mass(layer), other.attention_mass(layer), strict=True):
                    assert torch.equal(found, expected)
    assert is_recorded(one)
    assert not is_recorded(other)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, seed=5), Sampling(temperature=2.0, top_k=9, top_p=0.9, seed=1)]
)
def test_choosing_in_the_graph(load: Callable[..., Engine], sampling: Sampling) -> None:
    engine = load("float32")
    answers = []
    for is_recorded in (True, False):
        session = engine.new_session()
        session.prefill(random_ids(30))
        sampler = Sampler(sampling)
        assert session.logits is not None
        tokens = [sampler(session.logits)]
        for _ in range(40):
            if is_recorded:
                tokens.append(session.step_and_choose(tokens[-1], sampler))
            else:
                tokens.append(sampler(session.step(tokens[-1])))
        answers.append(tokens)
    assert answers[0] == answers[1]


def test_steps_begun_ahead_are_exact(pair: tuple[Session, Session]) -> None:
    """An answer whose steps begin before its tokens are read; left, gone back from, forked and gone on with."""
    one, other = pair
    sampler, again = Sampler(Sampling()), Sampler(Sampling())
    tokens = [3]
    for _ in range(20):
        tokens.append(one.step_and_choose(tokens[-1], sampler))
        assert tokens[-1] == again(other.step(tokens[-2]))
    assert one.launched == one.length + 1
    assert_same(one, other)
    fork, other_fork = one.fork(), other.fork()
    for session in (one, other, fork, other_fork):
        session.step(7)
    assert_same(one, other)
    assert_same(fork, other_fork)
    assert one.step_and_choose(5, sampler) == again(other.step(5))
    for session in (one, other):
        session.prefill([1, 2, 3])
    assert_same(one, other)


def test_a_prompt_that_dies_behind_a_step_begun_ahead(
    pair: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written its keys over the step's; and logits are copied only now that somebody asks for them."""
    one, other = pair
    sampler, again = Sampler(Sampling()), Sampler(Sampling())
    tokens = [3]

    def answer() -> None:
        for _ in range(9):
            tokens.append(one.step_and_choose(tokens[-1], sampler))
            assert tokens[-1] == again(other.step(tokens[-2]))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    answer()
    assert one.launched == one.length + 1
    with monkeypatch.context() as patch:
        patch.setattr(Network, "logits", die)
        with pytest.raises(KeyboardInterrupt):
            one.prefill([1, 2, 3])
    assert_same(one, other)
    answer()
    assert_same(one, other)


def test_the_first_steps_are_taken_before_any_is_recorded(load: Callable[..., Engine]) -> None:
    """And are bit-equal to those of a session whose graphs are there."""
    engine = load("bfloat16")
    session = engine.new_session()
    session.prefill(random_ids(70))
    start, tokens = session.checkpoint(), random_ids(6, seed=1)
    first, recorded = [], []
    for token in tokens:
        first.append(session.step(token))
        assert session._reader.decoder is not None
        assert session._reader.decoder._sides is not None
        recorded.append(sum(side.graph is not None for side in session._reader.decoder._sides))
    assert recorded == [0, 0, 1, 2, 2, 2]
    session.rewind(start)
    for token, expected in zip(tokens, first, strict=True):
        assert torch.equal(session.step(token), expected)
    fork = session.fork()
    assert torch.equal(fork.step(3), session.step(3))


def test_going_back_is_exact(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit-equal to sessions that were given only what is left, also across the edge of a room."""
    monkeypatch.setattr(decode_graph, "ROOM_TOKENS", 16)
    engine = load("bfloat16")

    def fresh(steps: list[int]) -> Session:
        session = engine.new_session()
        session.prefill(random_ids(70))
        for token in steps:
            session.step(token)
        return session

    session = fresh([1, 2])
    mark = session.checkpoint()
    for token in random_ids(30, seed=4):
        session.step(token)
    fork = session.fork()
    session.rewind(mark)
    assert_same(session, fresh([1, 2]))
    for token in (7, 8):
        session.step(token)
        fork.step(token)
    assert_same(session, fresh([1, 2, 7, 8]))
    assert_same(fork, fresh([1, 2, *random_ids(30, seed=4), 7, 8]))


def test_a_replay_waits_for_nothing(load: Callable[..., Engine]) -> None:
    session = load("bfloat16").new_session()
    session.prefill(random_ids(70))
    for token in (1, 2, 3, 4):
        session.step(token)
    decoder = session._reader.decoder
    assert decoder is not None
    assert is_recorded(session)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder._run(decoder._last, session._cache)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_an_answer_waits_for_its_tokens_only(load: Callable[..., Engine]) -> None:
    """Also where a block begins: three of them in 40 tokens."""
    session, sampler, token = load("bfloat16").new_session(), Sampler(Sampling()), 3
    session.prefill(random_ids(70))
    before = torch.cuda.get_sync_debug_mode()
    try:
        for number in range(44):
            if number == 4:
                torch.cuda.set_sync_debug_mode("error")
            token = session.step_and_choose(token, sampler)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert session.length == 114


def test_the_embedded_model() -> None:
    """The model of the package decodes as one graph."""
    engine = salalocal.load("salalocal-pocket", device="cuda")
    session = engine.new_session()
    with salalocal_kernels.watch() as served:
        session.prefill(random_ids(3000, seed=1))
        for token in (1, 2, 3, 4):
            session.step(token)
    assert served.fallbacks == {}
    assert is_recorded(session)
