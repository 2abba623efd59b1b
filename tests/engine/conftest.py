"""Engines over tiny models: random ones of any shape, made here, and the golden ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "evaluate"))

from naive_sala import tiny_config, write_model

import salalocal
from salalocal.engine import session_files, write_behind
from salalocal.engine.engine import Engine

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def make_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """make_engine("sls", dtype="float64", **config changes): an engine over a random tiny model."""
    made: dict[str, Engine] = {}

    def make(mixers: str = "sls", dtype: str = "float32", **changes: object) -> Engine:
        key = f"{mixers} {dtype} {sorted(changes.items())}"
        if key not in made:
            folder = write_model(tmp_path_factory.mktemp("tiny"), tiny_config(mixers, **changes))
            made[key] = salalocal.load(folder, device="cpu", dtype=dtype)
        return made[key]

    return make


@pytest.fixture(scope="session")
def m2() -> Engine:
    """The golden model with two kv heads and three attention layers, blocks of 32, sparse from 256 tokens on."""
    return salalocal.load(GOLDEN / "models" / "m2", device="cpu", dtype="float32")


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> int:
    """Saved sessions are in files of 24 tokens, and save themselves every so many."""
    every = 16
    monkeypatch.setattr(session_files, "FILE_TOKENS", 24)
    monkeypatch.setattr(write_behind, "_EVERY_TOKENS", every)
    return every


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """In every test of this folder."""
