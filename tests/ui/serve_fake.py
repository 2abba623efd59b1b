"""The window over the scripted engine, for the browser test and for looking at it while working on it.

    python tests/ui/serve_fake.py [--slow] [DOCUMENT...]

Prints its address on stderr and runs until Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

import salalocal

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import FakeEngine

from salalocal_ui.app import listen, serve

ANSWER = """The harbour was built in **1893**, after the old quay had been lost in a storm.

The book says: “The new harbour was opened in the spring of 1893.” It adds: “Every ship was painted blue.”"""

QUOTES = (
    salalocal.QuoteMatch(
        "The new harbour was opened in the spring of 1893.", salalocal.Place("harbour.md", line=12), 1.0, True
    ),
    salalocal.QuoteMatch("Every ship was painted blue.", None, 0.0, True),
)


def main(arguments: list[str]) -> None:
    slow = "--slow" in arguments
    documents = [Path(argument) for argument in arguments if not argument.startswith("--")]
    engine = FakeEngine(answer=ANSWER, quotes=QUOTES, limit=8192, chunk=16, chunk_seconds=0.05 if slow else 0.01)
    with listen("127.0.0.1", 0) as listener:
        serve(engine, "scripted", listener, documents=documents)


if __name__ == "__main__":
    main(sys.argv[1:])
