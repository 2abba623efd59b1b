"""The window over the scripted engine, for the browser test and for looking at it while working on it.

    python tests/ui/serve_fake.py [--slow] [--short] [DOCUMENT...]

`--short`: the answer is a few words of the document, without a quotation. Prints its address on
stderr and runs until Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

import salalocal

sys.path.insert(0, str(Path(__file__).parent))

from fake_engine import FakeEngine

from salalocal_ui.app import listen, serve

ANSWER = """The last keeper left on **30 June 1984**.

The text says: “The last keeper left Kestrel Rock on 30 June 1984.” It adds: “Every ship was painted blue.”"""

QUOTES = (
    salalocal.QuoteMatch(
        "The last keeper left Kestrel Rock on 30 June 1984.", salalocal.Place("kestrel-rock.pdf", page=2), 1.0, True
    ),
    salalocal.QuoteMatch("Every ship was painted blue.", None, 0.0, True),
)


SHORT_ANSWER = "30 June 1984"
PASSAGES = (
    salalocal.ReadPassage(
        "The last keeper left Kestrel Rock on 30 June 1984.", salalocal.Place("kestrel-rock.pdf", page=2), 0.62
    ),
    salalocal.ReadPassage(
        "Each of them kept watch for four hours, wound up the clockwork that turned the lens, and wrote down the "
        "weather every three hours in the log book.",
        salalocal.Place("kestrel-rock.pdf", page=1),
        0.07,
    ),
)


def main(arguments: list[str]) -> None:
    slow = "--slow" in arguments
    short = "--short" in arguments
    documents = [Path(argument) for argument in arguments if not argument.startswith("--")]
    engine = FakeEngine(
        answer=SHORT_ANSWER if short else ANSWER,
        quotes=() if short else QUOTES,
        passages=PASSAGES,
        limit=8192,
        chunk=16,
        chunk_seconds=0.05 if slow else 0.01,
    )
    with listen("127.0.0.1", 0) as listener:
        serve(engine, "scripted", listener, documents=documents)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)  # as the command line does
