"""One answer as it comes: reading bar, text, the places of its quotes, its figures.

Knows the engine's events and how they are shown; knows nothing of how the question was made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

import salalocal
from salalocal.cli.terminal import AnswerWriter, ReadingBar, one_line, stdout
from salalocal.errors import EngineFailure

if TYPE_CHECKING:
    from salalocal import Done, Evidence, Place, Progress, QuoteMatch, Token

EXCERPT_CHARACTERS = 60


@dataclass(frozen=True)
class Turn:
    """A finished or stopped answer: its text, its quotes and the engine's closing event."""

    answer: str
    quotes: tuple[QuoteMatch, ...]
    done: Done

    @property
    def stopped(self) -> bool:
        """True where Ctrl-C ended it."""
        return self.done.finish_reason == "cancelled"


def follow(
    events: Iterable[Progress | Token | Evidence | Done], cancel: threading.Event, *, silent: bool = False
) -> Turn:
    """Show the engine's events until the answer ends.

    Args:
        events: of one `engine.chat` call.
        cancel: given to the same call; the reading bar says when it is set.
        silent: keep the answer off stdout, for --json; the reading bar is on stderr and stays.

    Raises:
        EngineFailure: the events ended without `Done`.
    """
    answer: list[str] = []
    quotes: tuple[QuoteMatch, ...] = ()
    done: Done | None = None
    writer = AnswerWriter()
    with ReadingBar(cancel) as bar:
        bar.wait()
        try:
            for event in events:
                if isinstance(event, salalocal.Progress):
                    bar.show(event)
                elif isinstance(event, salalocal.Token):
                    bar.close()
                    answer.append(event.text)
                    if not silent:
                        writer.write(event.text)
                elif isinstance(event, salalocal.Evidence):
                    quotes = event.quotes
                else:
                    done = event
        finally:
            writer.finish()
    if done is None:
        raise EngineFailure("the engine stopped in the middle of the answer")
    return Turn("".join(answer), quotes, done)


def print_quotes(quotes: Sequence[QuoteMatch]) -> None:
    """The places of quotes, one a line on stdout; a quote that is nowhere in the text is called that.

    Where the documents have it in other words, theirs are shown: the answer's stand above.
    """
    console = stdout()
    for quote in quotes:
        if quote.place is not None:
            words = _excerpt(quote.text)
            if quote.score < 1.0:
                words = f"{_excerpt(quote.found or quote.text)} similar, not word for word"
            console.print(Text.assemble("  ↳ ", (one_line(str(quote.place)), "cyan"), (f"  {words}", "dim")))
        elif quote.quoted:
            console.print(Text.assemble("  ↳ ", ("not in the text", "yellow"), (f"  {_excerpt(quote.text)}", "dim")))


def figures(done: Done) -> str:
    """'reused 1,204 · read 31 · 24.1 tokens/s' for one answer."""
    usage = done.usage
    parts = [f"reused {usage.reused_tokens:,}", f"read {usage.prompt_tokens - usage.reused_tokens:,}"]
    if usage.completion_tokens and usage.decode_seconds > 0:
        parts.append(f"{usage.completion_tokens / usage.decode_seconds:.1f} tokens/s")
    return " · ".join(parts)


def quotes_as_data(quotes: Sequence[QuoteMatch]) -> list[object]:
    """The quotes of an answer for --json; a quote that is not in the text has the place null.
    `found` is what the documents say there, null where there is no place."""
    return [
        {
            "text": quote.text,
            "in_quotation_marks": quote.quoted,
            "score": quote.score,
            "found": quote.found,
            "place": None if quote.place is None else _place_as_data(quote.place),
        }
        for quote in quotes
    ]


def usage_as_data(done: Done) -> dict[str, object]:
    """The figures of an answer for --json."""
    usage = done.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "completion_tokens": usage.completion_tokens,
        "prefill_seconds": usage.prefill_seconds,
        "decode_seconds": usage.decode_seconds,
    }


def _place_as_data(place: Place) -> dict[str, object]:
    return {"file": place.file, "page": place.page, "line": place.line}


def _excerpt(text: str) -> str:
    line = one_line(text)
    if len(line) > EXCERPT_CHARACTERS:
        line = line[: EXCERPT_CHARACTERS - 1].rstrip() + "…"
    return f"“{line}”"
