"""K and V in host memory on an NVIDIA GPU, at the released model's heads and blocks: recorded steps that fetch, chunks
that stream, and what happens where CUDA does not take the memory.
"""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same

import salalocal
import salalocal_kernels
from salalocal.cache import host_memory
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine.engine import Engine
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

RELEASED = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "lightning_nkv": 32,
    "intermediate_size": 256, "vocab_size": 512,
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                      "window_size": 2048, "topk": 64, "dense_len": 8192},
}  # fmt: skip
# What one step needs, and no slot more.
LEAST_SLOTS = 2 * 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tiny_config("sls", **RELEASED))


@pytest.fixture(scope="module")
def resident(folder: Path) -> Engine:
    return salalocal.load(folder, device="cuda", dtype="bfloat16")


@pytest.fixture(scope="module")
def wide(folder: Path) -> Engine:
    return salalocal.load(folder, device="cuda", dtype="float64")


@pytest.fixture
def tiered(folder: Path) -> Callable[..., Engine]:
    def make(slots: int = LEAST_SLOTS, staged: int = 129, kv: str = "full") -> Engine:
        engine = salalocal.load(folder, device="cuda", dtype="bfloat16", kv_budget=256 << 20, kv=kv)
        # 100 pages in a segment, or 196 of 8 bits.
        segment = 100 * 2 * (64 << 10)
        engine._tiers = TieredStore(2, 2, 128, 64, torch.bfloat16, engine.device, slots, staged, segment, kv, 50)
        return engine

    return make


def ids(count: int, seed: int = 0) -> list[int]:
    return random_ids(count, 512, seed)


def is_recorded(session: Session) -> bool:
    assert session._reader.decoder is not None
    assert session._reader.decoder._sides is not None
    return all(side.graph is not None for side in session._reader.decoder._sides)


def step_alike(one: Session, other: Session, count: int, seed: int = 1) -> None:
    for token in ids(count, seed):
        assert torch.equal(one.step(token), other.step(token))


@pytest.mark.parametrize("length", [50, 8100, 20_000])
def test_steps_in_the_graph_are_bit_equal(tiered: Callable[..., Engine], resident: Engine, length: int) -> None:
    """The history fits one buffer, so chunks are bit-equal too; the pool is too small by far."""
    one, other = tiered(staged=400).new_session(record_selection=True), resident.new_session(record_selection=True)
    for session in (one, other):
        session.prefill(ids(length), chunk_size=4096)
    assert_same(one, other)
    with salalocal_kernels.watch() as served:
        step_alike(one, other, 150)
    assert served.fallbacks == {}
    assert_same(one, other)
    for layer in (0, 2):
        selected = one.selected_blocks(layer), other.selected_blocks(layer)
        assert (selected[0] is None) == (selected[1] is None) == (length < 8000)
        assert selected[0] is None or torch.equal(*selected)
    assert is_recorded(one)
    traffic = one.traffic
    assert traffic is not None
    assert traffic.hits > 0
    assert (traffic.misses > 0) == (length > 50), "a short context fits the pool"
    assert traffic.bytes == traffic.misses << 15


@pytest.mark.parametrize("chunk", [8192, 3000])
def test_a_history_that_comes_in_pieces(
    tiered: Callable[..., Engine], resident: Engine, wide: Engine, chunk: int
) -> None:
    one, other = tiered().new_session(record_selection=True), resident.new_session(record_selection=True)
    for session in (one, other):
        session.prefill(ids(30_000), chunk_size=chunk)
    first, second = (session.selected_blocks(0) for session in (one, other))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second), "the first layer's keys are the same"
    # Sums in another order, in bfloat16, which move what later layers select: no further from the exact logits than
    # a session that has everything on the device.
    exact = wide.new_session()
    exact.prefill(ids(30_000), chunk_size=chunk)
    tokens = ids(20, seed=2)
    errors = [
        [
            (session.step(token).double() - logits).square().mean()
            for token, logits in zip(tokens, expected, strict=True)
        ]
        for expected in [[exact.step(token) for token in tokens]]
        for session in (one, other)
    ]
    ours, usual = (torch.stack(each).mean().sqrt() for each in errors)
    assert ours <= 2 * usual


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_in_8_bits_the_size_of_the_pool_changes_nothing(tiered: Callable[..., Engine], kv: str) -> None:
    """Blocks that came back from the host are bit for bit those that stayed, of chunks, steps and both."""
    sessions = [tiered(slots, staged=500, kv=kv).new_session() for slots in (LEAST_SLOTS, 3000)]
    with salalocal_kernels.watch() as served:
        for session in sessions:
            session.prefill(ids(20_000), chunk_size=4096)
        step_alike(sessions[0], sessions[1], 150)
        for session in sessions:
            session.prefill(ids(5000, seed=3), chunk_size=3000)
        step_alike(sessions[0], sessions[1], 70, seed=4)
    assert served.fallbacks == {}
    assert_same(sessions[0], sessions[1])
    assert is_recorded(sessions[0])
    small, large = (session.traffic for session in sessions)
    assert small is not None
    assert large is not None
    assert small.misses > large.misses
    assert small.bytes == small.misses * 16640


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_in_8_bits_steps_and_chunks_round_alike(tiered: Callable[..., Engine], kv: str) -> None:
    """What a token's kernel writes to the host is what a chunk's writes, in the first layer, whose keys are the same
    up to a rounding of the products."""
    steps, chunk = (tiered(staged=400, kv=kv).new_session() for _ in range(2))
    for session in (steps, chunk):
        session.prefill(ids(128))
    more = ids(64, seed=1)
    for token in more:
        steps.step(token)
    chunk.prefill(more)
    found, expected = (session._cache.tokens(128, 192)["kv.0"].float() for session in (steps, chunk))
    assert (found - expected).square().mean().sqrt() <= 5e-2 * expected.square().mean().sqrt()


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_in_8_bits_saved_and_restored(tiered: Callable[..., Engine], tmp_path: Path, kv: str) -> None:
    one = tiered(kv=kv).new_session()
    one.prefill(ids(9000), chunk_size=4000)
    one.step(1)
    one.save(tmp_path / "saved")
    other = tiered(kv=kv).restore(tmp_path / "saved")
    step_alike(other, one, 9)


def test_forks_and_going_back(tiered: Callable[..., Engine], resident: Engine) -> None:
    sessions = [engine.new_session() for engine in (tiered(slots=700, staged=400), resident)]
    for session in sessions:
        session.prefill(ids(12_000), chunk_size=5000)
    marks = [session.checkpoint() for session in sessions]
    step_alike(sessions[0], sessions[1], 70)
    forks = [session.fork() for session in sessions]
    step_alike(forks[0], forks[1], 9, seed=3)
    for session, mark in zip(sessions, marks, strict=True):
        session.rewind(mark)
    step_alike(sessions[0], sessions[1], 9, seed=4)
    for session in sessions:
        session.prefill(ids(3000, seed=5))
    step_alike(sessions[0], sessions[1], 9, seed=6)
    step_alike(forks[0], forks[1], 70, seed=7)
    assert_same(sessions[0], sessions[1])
    assert_same(forks[0], forks[1])


def test_steps_begun_ahead(tiered: Callable[..., Engine], resident: Engine) -> None:
    """Each begins before the host knows its token; one that was begun for nothing harms nothing."""
    answers = []
    for engine in (tiered(staged=400), resident):
        session, sampler = engine.new_session(), Sampler(Sampling(temperature=0.8, seed=5))
        tokens = [sampler(session.prefill(ids(9000), chunk_size=4000))]
        for _ in range(3):
            tokens += [session.step_and_choose(tokens[-1], sampler) for _ in range(70)]
            fork = session.fork()
            tokens.append(fork.step_and_choose(7, sampler))
            tokens.append(sampler(session.prefill(ids(50, seed=len(tokens)))))
        answers.append(tokens)
    assert answers[0] == answers[1]


def test_saved_and_restored(tiered: Callable[..., Engine], resident: Engine, tmp_path: Path) -> None:
    one = tiered().new_session()
    one.prefill(ids(9000), chunk_size=4000)
    one.step(1)
    one.save(tmp_path / "saved")
    others = [engine.restore(tmp_path / "saved") for engine in (tiered(), resident)]
    for token in (5, 6, 7):
        logits = one.step(token)
        for other in others:
            assert torch.equal(other.step(token), logits)


def test_a_replay_waits_for_nothing(tiered: Callable[..., Engine]) -> None:
    session = tiered().new_session()
    session.prefill(ids(9000))
    session.step(1)
    decoder = session._reader.decoder
    assert decoder is not None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder._run(decoder._last, session._cache)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_memory_that_cuda_refuses(
    tiered: Callable[..., Engine],
    resident: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Chunks go through pageable memory, steps without a graph; both compute the same."""
    monkeypatch.setattr(host_memory, "register", lambda *_: "out of memory")
    one, other = tiered(staged=400).new_session(), resident.new_session()
    for session in (one, other):
        session.prefill(ids(9000), chunk_size=4000)
    step_alike(one, other, 9)
    assert_same(one, other)
    assert one._reader.decoder is None
    told = [record.getMessage() for record in caplog.records]
    assert sum("CUDA does not register it (out of memory)" in message for message in told) == 1
    assert sum("without a CUDA graph" in message for message in told) == 1


def test_a_refusal_harms_nothing_else(tiered: Callable[..., Engine], resident: Engine) -> None:
    memory = mmap.mmap(-1, 1 << 20)
    address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
    assert host_memory.register(address, 1 << 20) == ""
    assert host_memory.register(address, 1 << 20) != "", "it is registered already"
    host_memory.unregister([address])
    one, other = tiered(staged=400).new_session(), resident.new_session()
    for session in (one, other):
        session.prefill(ids(9000))
    step_alike(one, other, 3)


def test_an_engine_that_is_dropped_gives_its_memory_back_and_harms_no_other(tiered: Callable[..., Engine]) -> None:
    kept, dropped = tiered(), tiered()
    sessions = [engine.new_session() for engine in (kept, dropped)]
    for session in sessions:
        session.prefill(ids(9000))
        session.step(1)
    expected = sessions[1].step(2)
    del dropped, session, sessions[1]
    gc.collect()
    assert torch.equal(sessions[0].step(2), expected)


CAPPED = """
import sys, torch, salalocal
from salalocal.engine import gpu_memory
cap = int(sys.argv[2])
engine = salalocal.load(sys.argv[1], device="cuda", dtype="bfloat16", gpu_memory=cap)
assert engine._tiers is not None
session = engine.new_session()
assert session.max_tokens > 30_000
session.prefill([token * 7 % 512 for token in range(30_000)])
for token in range(9):
    session.step(token)
assert all(side.graph is not None for side in session._reader.decoder._sides)
print(gpu_memory.peak_bytes(engine.device).nbytes)
"""


def test_a_cap_on_the_whole_process(folder: Path) -> None:
    """In a process of its own: PyTorch is held to the cap for good."""
    cap = 3 << 30
    command = [sys.executable, "-c", CAPPED, str(folder), str(cap)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= cap
