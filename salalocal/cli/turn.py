"""One answer as it comes: reading bar, text, the places of its quotes, what was read for it, its figures.

Knows the engine's events and how they are shown; knows nothing of how the question was made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

import salalocal
from salalocal.cli.terminal import AnswerWriter, ReadingBar, one_line, print_note, stdout
from salalocal.errors import EngineFailure

if TYPE_CHECKING:
    from salalocal import Done, Evidence, Place, Progress, QuoteMatch, ReadPassage, Token

EXCERPT_CHARACTERS = 60
PASSAGE_CHARACTERS = 160


@dataclass(frozen=True)
class Turn:
    """A finished or stopped answer: its text, its quotes, what was read for it, and the engine's closing event."""

    answer: str
    quotes: tuple[QuoteMatch, ...]
    passages: tuple[ReadPassage, ...]
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
    evidence = salalocal.Evidence(())
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
                    # Models that copy words of a text begin with the blank before them.
                    text = event.text if any(answer) else event.text.lstrip()
                    answer.append(text)
                    if not silent:
                        writer.write(text)
                elif isinstance(event, salalocal.Evidence):
                    evidence = event
                else:
                    done = event
        finally:
            writer.finish()
    if done is None:
        raise EngineFailure("the engine stopped in the middle of the answer")
    return Turn("".join(answer), evidence.quotes, evidence.passages, done)


def print_evidence(turn: Turn, *, with_passages: bool) -> None:
    """What the answer stands on: its quotes, and the passages read for it if they are asked for.

    If they are not, an answer that quotes nothing gets as its place the passage that it came from, where that is clear.
    """
    print_quotes(turn.quotes)
    if with_passages:
        print_passages(turn.passages)
    elif (passage := salalocal.Evidence(turn.quotes, turn.passages).place_of(turn.answer)) is not None:
        _print_place(passage.place, _excerpt(passage.text, PASSAGE_CHARACTERS, around=turn.answer))


def print_quotes(quotes: Sequence[QuoteMatch]) -> None:
    """The places of quotes, one a line on stdout; a quote that is nowhere in the text is called that.

    Where the documents have it in other words, theirs are shown: the answer's stand above.
    """
    for quote in quotes:
        if quote.place is not None:
            words = _excerpt(quote.text)
            if quote.score < 1.0:
                words = f"{_excerpt(quote.found or quote.text)} similar, not word for word"
            _print_place(quote.place, words)
        elif quote.quoted:
            stdout().print(Text.assemble("  ↳ ", ("not in the text", "yellow"), (f"  {_excerpt(quote.text)}", "dim")))


def print_passages(passages: Sequence[ReadPassage]) -> None:
    """The sentences that were read for an answer, one a line on stdout with its share of the attention."""
    if not passages:
        print_note("read for this answer: no sentence of a document stands out")
        return
    console = stdout()
    console.print(Text("read for this answer:", style="dim"))
    for passage in passages:
        place, words = one_line(str(passage.place)), _excerpt(passage.text, PASSAGE_CHARACTERS)
        line = Text.assemble("  • ", (place, "cyan"), (f"  {words}", "dim"), f"  {100 * passage.share:.0f} %")
        console.print(line)


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


def passages_as_data(passages: Sequence[ReadPassage]) -> list[object]:
    """The sentences read for an answer, for --json."""
    return [
        {"text": passage.text, "share": passage.share, "place": _place_as_data(passage.place)} for passage in passages
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


def _print_place(place: Place, words: str) -> None:
    stdout().print(Text.assemble("  ↳ ", (one_line(str(place)), "cyan"), (f"  {words}", "dim")))


def _excerpt(text: str, characters: int = EXCERPT_CHARACTERS, *, around: str = "") -> str:
    """At most so many characters of `text`, from its beginning; where `around` is further behind, from before that."""
    line, wanted = one_line(text), one_line(around).rstrip(".")
    at = line.casefold().find(wanted.casefold())
    if at > 0 and at + len(wanted) >= characters:
        begin = max(0, at - max(0, characters - len(wanted)) // 2)
        line = "…" + line[line.rfind(" ", 0, begin) + 1 :]
    if len(line) > characters:
        line = line[: characters - 1].rstrip() + "…"
    return f"“{line}”"
