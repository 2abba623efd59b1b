"""Ctrl-C as a request: the first press sets an event that the engine looks at, the second interrupts Python.

Knows signals; knows nothing of what is being cancelled.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """Within the block Ctrl-C sets the yielded event; a second Ctrl-C raises `KeyboardInterrupt`.

    Outside the main thread signals cannot be caught and the event is simply never set.
    """
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before)
