"""The command line: `salalocal VERB`. Parses, calls salalocal's public names, prints; decides nothing else.

    app.py        the verbs put together; errors as one line, exit codes
    opening.py    which model, which documents: what `chat` and `ask` share before the first token
    turn.py       one answer: its events, the places of its quotes, its figures
    ask.py chat.py doc.py models.py plan.py quantize.py doctor.py verify.py evaluate.py window.py    the verbs
    terminal.py interrupt.py options.py    what is drawn, Ctrl-C, options that verbs share
    docs.py       writes docs/cli.md from the verbs' own --help

Nothing here imports torch at import time, so that `salalocal --help` answers at once. This module imports next to
nothing, so that Ctrl-C is heard from the start.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from salalocal.cli.interrupt import EXIT_INTERRUPTED, end_on_interrupt, say_stopped

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and leave the process with its exit code.

    Args:
        arguments: the words after `salalocal`; those of the process when None.
    """
    try:
        with end_on_interrupt():
            from salalocal.cli import app
        app.main(arguments)
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(EXIT_INTERRUPTED)
