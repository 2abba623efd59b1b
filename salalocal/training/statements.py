"""What a generated fact is: a sentence, and questions whose answers are spans of it.

Also decides which wordings are held out. Knows no tokens and no model.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum

ABSENT_ANSWER = "That is not in the text."
HELD_OUT_SHARE = 12
"""One wording in so many is never trained on, and likewise one relation and one verb in so many."""


class Split(Enum):
    """TRAINED wordings make the training stream; UNSEEN ones are only ever used to measure."""

    TRAINED = "trained"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Ask:
    """A question and its answer: `spans` are (start, end) character offsets of the statement, `key` says what is asked
    about, so that two questions with one key have one answer, `frame` names the wording."""

    question: str
    spans: tuple[tuple[int, int], ...]
    key: tuple[str, ...]
    frame: str


@dataclass(frozen=True)
class Statement:
    """A fact in words. `is_line` statements stand on their own lines (code, settings), others flow with prose."""

    text: str
    asks: tuple[Ask, ...]
    is_line: bool = False


def split_of(*names: str) -> Split:
    """The split a wording belongs to, by the checksum of its names: the same on every machine and in every run."""
    return Split.UNSEEN if zlib.crc32("/".join(names).encode()) % HELD_OUT_SHARE == 0 else Split.TRAINED


def sentence(text: str, end: str = ".") -> str:
    """The text with a capital first letter and `end`, unless it ends a sentence already (also within quotes)."""
    text = text[0].upper() + text[1:]
    return text if text.rstrip("\"'”’)")[-1:] in (".", "!", "?", "\n") else text + end
