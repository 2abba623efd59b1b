"""What the window shows, as frozen values: no engine, no Gradio, no locks.

`Desk` (session.py) makes a `View` whenever it is asked; the panes turn a `View` into HTML. Nothing here
holds document text: a page gets names, counts and places, never the book.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import salalocal

Tone = Literal["info", "refused", "failed"]
Task = Literal["adding", "reading", "answering", "tidying"]


@dataclass(frozen=True)
class FileCount:
    """One file of a document and its length: `path` is relative and posix, `tokens` the model's own count."""

    path: str
    tokens: int


@dataclass(frozen=True)
class Item:
    """One document on the shelf."""

    id: int
    name: str
    files: tuple[FileCount, ...]
    skipped: tuple[salalocal.Skipped, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all files together."""
        return sum(file.tokens for file in self.files)


@dataclass(frozen=True)
class Notice:
    """One sentence for the user; `refused` is mended by another input, `failed` is not."""

    text: str
    tone: Tone = "info"


@dataclass(frozen=True)
class Reading:
    """How far a prefill is: tokens, tokens per second, seconds left (may be infinite or NaN at the start)."""

    done_tokens: int
    total_tokens: int
    tokens_per_second: float = 0.0
    seconds_left: float = float("nan")


@dataclass(frozen=True)
class Activity:
    """What the engine is doing now, and how many requests wait behind it."""

    task: Task
    label: str
    reading: Reading | None = None
    stopping: bool = False
    waiting: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One question and what came of it.

    `answer` grows while tokens arrive; `quotes`, `passages` (what was read for it) and `usage` come at the end;
    `notice` says that the answer was stopped, cut at the length limit, or refused. A turn without an answer is not
    part of the next prompt. `waiting`: its turn has not come yet; `too_long`: the notice is a refusal for the length
    of the documents.
    """

    question: str
    answer: str = ""
    quotes: tuple[salalocal.QuoteMatch, ...] = ()
    passages: tuple[salalocal.ReadPassage, ...] = ()
    usage: salalocal.Usage | None = None
    notice: Notice | None = None
    finished: bool = False
    waiting: bool = False
    too_long: bool = False

    @property
    def place(self) -> salalocal.ReadPassage | None:
        """The passage that an answer without quotes came from, where that is clear."""
        return salalocal.Evidence(self.quotes, self.passages).place_of(self.answer)


@dataclass(frozen=True)
class View:
    """All that the page shows at one moment. `version` differs whenever anything else does.

    `total_tokens` is what every prompt about the documents begins with (their text, and the words around it);
    `limit_tokens` the most the model can hold, question and answer included; `length_note` a sentence where they
    are more than it was trained at.
    """

    version: int
    model: str
    items: tuple[Item, ...] = ()
    read_tokens: int = 0
    total_tokens: int = 0
    limit_tokens: int = 0
    length_note: str | None = None
    activity: Activity | None = None
    notices: tuple[Notice, ...] = ()
    turns: tuple[Turn, ...] = field(default=())

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return self.activity is not None

    @property
    def surplus_tokens(self) -> int:
        """Tokens of the documents beyond what the model can hold."""
        return max(0, self.total_tokens - self.limit_tokens)

    @property
    def unread_tokens(self) -> int:
        """Tokens of the documents that the model has not read yet."""
        return max(0, self.total_tokens - self.read_tokens)


def messages_of(turns: Sequence[Turn]) -> list[salalocal.Message]:
    """The conversation that the next prompt repeats: every question that got at least a partial answer."""
    messages = []
    for turn in turns:
        if turn.answer:
            messages.append(salalocal.Message(role="user", content=turn.question))
            messages.append(salalocal.Message(role="assistant", content=turn.answer))
    return messages
