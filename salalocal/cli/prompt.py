"""The line a person types in a chat. Knows readline and signals; knows nothing of what is said."""

from __future__ import annotations

import signal
import sys
from types import FrameType

try:
    import readline
except ImportError:  # Windows: the console edits lines by itself
    readline = None  # type: ignore[assignment]


class _LineThrownAway(Exception):
    """Ctrl-C with something typed: the line goes, the chat stays."""


def read_line() -> str | None:
    """The next line, without its newline; None when the person leaves (Ctrl-C on an empty line, Ctrl-D).

    On a terminal there is a prompt, and Ctrl-C throws a half-typed line away. Elsewhere lines are taken
    from stdin as they come.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    sys.stdout.write("\n")
    while True:
        before = signal.signal(signal.SIGINT, _on_interrupt)
        try:
            return input(_prompt())
        except _LineThrownAway:
            sys.stdout.write("\n")
        except (KeyboardInterrupt, EOFError):
            sys.stdout.write("\n")
            return None
        finally:
            signal.signal(signal.SIGINT, before)


def _on_interrupt(_signal: int, _frame: FrameType | None) -> None:
    if readline is not None and readline.get_line_buffer():
        raise _LineThrownAway
    raise KeyboardInterrupt


def _prompt() -> str:
    # \001 and \002 tell readline which characters take no room; a console without readline would show them.
    return "\001\033[1;36m\002› \001\033[0m\002" if readline is not None else "> "
