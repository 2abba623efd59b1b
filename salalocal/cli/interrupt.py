"""Ctrl-C as a request: the first press sets an event that the engine looks at, the third interrupts Python.

The second is impatience more often than despair, and what was read would be lost with it.

Knows signals and the terminal's echo; knows nothing of what is being cancelled.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

try:
    import termios
except ImportError:  # Windows: its console writes no "^C"
    termios = None  # type: ignore[assignment]


EXIT_INTERRUPTED = 130
PRESSES_TO_BREAK_OFF = 3


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """Within the block Ctrl-C sets the yielded event; the third press raises `KeyboardInterrupt`.

    Outside the main thread signals cannot be caught and the event is simply never set.
    """
    cancel = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    presses = 0

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        cancel.set()
        if presses >= PRESSES_TO_BREAK_OFF:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        with _no_caret_c():
            yield cancel
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _no_caret_c() -> Iterator[None]:
    """Within the block the terminal does not write "^C" into the answer when Ctrl-C is pressed."""
    if termios is None or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
