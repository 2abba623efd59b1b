"""Cuts long text into pieces that are encoded one by one, so that time and memory stay linear.

Knows where the pre-tokenizers in use put a boundary anyway; knows no vocabulary.
"""

from __future__ import annotations

import re

PIECE_CHARS = 1 << 16
_WINDOW = 1 << 13  # how far back from the limit a good place is looked for

# In order of preference; the cut is made at the end of the match. All three are boundaries of every
# pre-tokenizer that we build ourselves: after a line end and before a single space, both between word
# characters, and before punctuation that follows a letter (apostrophes excepted: "don't").
_GOOD_PLACES = (
    re.compile(r"\w\n(?=\w)"),
    re.compile(r"\w(?= \w)"),
    re.compile(r"[^\W\d_](?=[,.;:!?\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f])"),
)


def cut(text: str, piece_chars: int = PIECE_CHARS) -> list[str]:
    """Pieces of at most `piece_chars` characters that join to `text`.

    A run without any good place (a megabyte of one letter) is cut at the limit; its ids then differ from
    those of the whole run, but not its text.
    """
    if len(text) <= piece_chars:
        return [text] if text else []
    pieces = []
    start = 0
    while len(text) - start > piece_chars:
        end = _good_end(text, start, start + piece_chars)
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def _good_end(text: str, start: int, limit: int) -> int:
    window_start = max(start, limit - _WINDOW)
    # One character more than the limit, so that the look-ahead sees what follows.
    window = text[window_start : limit + 1]
    for place in _GOOD_PLACES:
        last = 0
        for match in place.finditer(window):
            if match.end() <= limit - window_start:
                last = match.end()
        if last:
            return window_start + last
    return limit
