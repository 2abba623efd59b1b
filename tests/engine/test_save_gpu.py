"""Sessions on an NVIDIA GPU are saved and come back bit-equal, steps of the recorded graph included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from replay import assert_same

import salalocal
from salalocal.engine import write_behind
from salalocal.engine.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "lightning_nkv": 2,
    "sparse_config": {"kernel_size": 8, "kernel_stride": 4, "init_blocks": 1, "block_size": 16, "window_size": 16,
                      "topk": 2, "dense_len": 60},
}  # fmt: skip


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    folder = write_model(tmp_path_factory.mktemp("model"), tiny_config("slsl", **SIZES))
    return lambda dtype="float32", device="cuda": salalocal.load(folder, device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 16, 47, 150])
def test_round_trip(load: Callable[..., Engine], tmp_path: Path, dtype: str, length: int) -> None:
    engine = load(dtype)
    session = engine.new_session()
    session.prefill(random_ids(length), chunk_size=20, checkpoints_at=(7, 40))
    for token in range(5):
        session.step(token)
    session.save(tmp_path)
    restored = engine.restore(tmp_path)
    assert_same(restored, session)
    for token in range(40):
        assert torch.equal(restored.step(token), session.step(token))
    for one in (restored, session):
        one.rewind(one.checkpoints[-1])
        one.prefill(random_ids(50, seed=1), chunk_size=20)
    assert_same(restored, session)


def test_saves_itself_while_steps_are_recorded(
    load: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "_EVERY_TOKENS", 16)
    engine = load("bfloat16")
    session = engine.new_session(save_to=tmp_path)
    for turn in range(4):
        session.prefill(random_ids(50, seed=turn), chunk_size=10)
        expected = session.fork()
        session.step(turn)
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert_same(engine.restore(tmp_path), expected)


def test_read_by_the_gpu_and_restored_on_the_processor(load: Callable[..., Engine], tmp_path: Path) -> None:
    session = load().new_session()
    session.prefill(random_ids(100))
    session.save(tmp_path)
    restored = load(device="cpu").restore(tmp_path)
    assert (restored.step(1) - session.step(1).cpu()).abs().max() < 1e-3
