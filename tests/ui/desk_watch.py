"""Waiting for a desk without sleeping longer than needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fake_engine import FakeEngine

from salalocal_ui.session import Desk
from salalocal_ui.state import View


def reading_desk(engine: FakeEngine, make_desk: Callable[[FakeEngine], Desk], book: Path) -> Desk:
    """A desk whose book is being read, and the engine is at it."""
    desk = make_desk(engine)
    desk.add(book)
    settled(desk)
    desk.read()
    assert engine.reached.wait(5)
    return desk


def settled(desk: Desk, seconds: float = 10.0) -> View:
    """The view once nothing runs or waits any more."""
    return until(desk, lambda view: not view.busy, seconds)


def until(desk: Desk, true: Callable[[View], bool], seconds: float = 10.0) -> View:
    """The first view for which `true` holds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        view = desk.view()
        if true(view):
            return view
        time.sleep(0.005)
    raise AssertionError(f"it never happened; last view: {desk.view()}")
