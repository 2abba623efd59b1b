"""The command line: `salalocal VERB`. Parses, calls salalocal's public names, prints; decides nothing else.

    app.py        the verbs put together; errors as one line, exit codes
    opening.py    which model, which documents: what `chat` and `ask` share before the first token
    turn.py       one answer: its events, the places of its quotes, its figures
    ask.py chat.py doc.py models.py quantize.py doctor.py verify.py evaluate.py window.py    the verbs
    terminal.py interrupt.py    what is drawn, and Ctrl-C
    docs.py       writes docs/cli.md from the verbs' own --help

Nothing here imports torch at import time, so that `salalocal --help` answers at once.
"""

from salalocal.cli.app import main

__all__ = ["main"]
