"""Desks over the scripted engine, closed at the end of each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import FakeEngine

from salalocal_ui.session import Desk


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_desk() -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(engine: FakeEngine, **options: object) -> Desk:
        desk = Desk(engine, model_name="scripted", **options)
        desks.append(desk)
        return desk

    yield make
    for desk in desks:
        desk.close()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of 200 different words."""
    path = tmp_path / "harbour.md"
    path.write_text(" ".join(f"word{n}" for n in range(200)), encoding="utf-8")
    return path
