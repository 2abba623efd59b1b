"""Ctrl-C. While the engine works it is a request: the first press sets an event that the engine looks at, the third
interrupts Python. The second is impatience more often than despair, and what was read would be lost with it.

Imports no module that takes time: `main` needs it before all others.

Knows signals and the terminal's echo; knows nothing of what is being cancelled.
"""

from __future__ import annotations

import os
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


def say_stopped() -> None:
    """One line on stderr; on a terminal it takes the place of the "^C" that stands there."""
    sys.stderr.write("\r" * sys.stderr.isatty() + "stopped\n")
    sys.stderr.flush()


@contextmanager
def end_on_interrupt() -> Iterator[None]:
    """Within the block Ctrl-C ends the process there and then, saying so: for imports.

    They leave nothing to be put back, and a `KeyboardInterrupt` in the middle of one may get lost or come out as
    another error. Elsewhere than in the main thread, and where Ctrl-C is ignored or caught already, nothing changes.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        say_stopped()
        os._exit(EXIT_INTERRUPTED)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
