"""Memory of a GPU that runs out: PyTorch is held to a limit that a chunk exceeds, and a recording finds none."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same

import salalocal
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit
from salalocal.model.network import Network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

# Feed-forwards so wide that what a chunk computes takes far more than what it leaves.
WIDE = {
    "hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "lightning_nkv": 4,
    "intermediate_size": 16384, "vocab_size": 512,
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                      "window_size": 2048, "topk": 64, "dense_len": 8192},
}  # fmt: skip
TOKENS, CHUNK = 16384, 8192


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = write_model(tmp_path_factory.mktemp("model"), tiny_config("sls", **WIDE))
    return salalocal.load(folder, device="cuda", dtype="bfloat16")


@pytest.fixture(autouse=True)
def _no_limit() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def limit(nbytes: int) -> None:
    """So much for everything that PyTorch holds, from an empty cache on."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(nbytes / torch.cuda.get_device_properties(0).total_memory, 0)


def ids(count: int, seed: int = 0) -> list[int]:
    return random_ids(count, 512, seed)


def read(engine: Engine, chunk: int) -> Session:
    session = engine.new_session()
    session.prefill(ids(TOKENS), chunk_size=chunk)
    return session


def peak(engine: Engine, chunk: int) -> int:
    """The most that PyTorch reserves while a text is read."""
    read(engine, chunk)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    read(engine, chunk)
    return torch.cuda.max_memory_reserved()


def test_a_chunk_over_the_limit_is_halved(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    whole, half = peak(engine, CHUNK), peak(engine, CHUNK // 2)
    assert whole - half > 128 << 20
    expected = read(engine, CHUNK // 2)
    # Before there is a limit, under which a session for chunks of the engine's own size would be refused.
    session = engine.new_session()
    limit((whole + half) // 2 + torch.cuda.memory_allocated())
    session.prefill(ids(TOKENS), chunk_size=CHUNK)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"reading {CHUNK:,} tokens after 0 ran out of GPU memory; reading on in")
    assert_same(session, expected)
    for token in ids(6, seed=1):
        assert torch.equal(session.step(token), expected.step(token))


def test_what_does_not_fit_is_refused_and_nothing_is_lost(engine: Engine) -> None:
    session, expected = engine.new_session(), engine.new_session()
    more = ids(TOKENS, seed=2)
    for each in (session, expected):
        each.prefill(ids(CHUNK), chunk_size=CHUNK, final_length=2 * TOKENS)
        each.step(1)
    limit(torch.cuda.memory_allocated() + (64 << 20))
    with pytest.raises(DoesNotFit, match=r"ran out of GPU memory: .* MiB more were asked for and .* MiB are free"):
        session.prefill(more, chunk_size=CHUNK, final_length=2 * TOKENS)
    assert_same(session, expected)
    session.step(2)
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    expected.step(2)
    assert_same(session, expected)
    for each in (session, expected):
        each.prefill(more, chunk_size=CHUNK, final_length=2 * TOKENS)
    assert_same(session, expected)


@pytest.mark.parametrize("times", [1, 2])
def test_a_recording_that_finds_no_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: int
) -> None:
    """The allocator refuses in the middle of the recording, and of the next attempt."""
    session, expected = engine.new_session(), engine.new_session()
    for each in (session, expected):
        each.prefill(ids(9000))
        for token in (1, 2):
            each.step(token)
    logits, asked = Network.logits, []

    def asks_too_much(self: Network, hidden: torch.Tensor) -> torch.Tensor:
        if len(asked) < times:
            asked.append(torch.cuda.is_current_stream_capturing())
            torch.empty(1 << 46, dtype=torch.uint8, device="cuda")
        return logits(self, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "logits", asks_too_much)
        if times == 1:
            session.step(3)
        else:
            with pytest.raises(DoesNotFit, match="reading a token after 9,002 ran out of GPU memory"):
                session.step(3)
    assert asked == [True, False][:times]
    assert len(caplog.records) == 1
    if times == 2:
        assert_same(session, expected)
        session.step(3)
    expected.step(3)
    for token in ids(6, seed=3):
        assert torch.equal(session.step(token), expected.step(token))
    assert_same(session, expected)
    assert all(side.graph is not None for side in session._reader.decoder._sides)  # type: ignore[union-attr]
