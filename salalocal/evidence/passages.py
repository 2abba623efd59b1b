"""What an answer quotes, and what else it says: its passages.

Knows quotation marks, block quotes, code fences and sentences. Knows no documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from salalocal.evidence.words import WORD

_SINGLE_QUOTED_WORDS = 4  # fewer between single straight quotes are rather apostrophes
_INSIDE = "{1,4000}?"
_QUOTE = re.compile(
    f"“([^“”]{_INSIDE})”"
    f"|„([^„“”]{_INSIDE})[“”]"
    f"|«([^«»]{_INSIDE})»"
    f"|»([^«»]{_INSIDE})«"
    f"|「([^「」]{_INSIDE})」"
    f"|『([^『』]{_INSIDE})』"
    f'|(?<![A-Za-z0-9])"(?=\\S)([^"]{_INSIDE})(?<=\\S)"(?![A-Za-z0-9])'
    f"|(?<!\\w)‘([^‘]{_INSIDE})’(?!\\w)"
    f"|(?<!\\w)'(?=\\S)(?P<single>[^\"]{_INSIDE})(?<=\\S)'(?!\\w)"
)
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_BLOCK_QUOTE = re.compile(r"(?:^[ ]{0,3}>[^\n]*(?:\n|\Z))+", re.MULTILINE)
_MARKER = re.compile(r"^[ ]{0,3}(?:>[ ]?)+", re.MULTILINE)
_ATTRIBUTION = re.compile(r"\n[ \t]*(?:—|–|--?)[ \t]*\w[^\n]*\Z")
_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*(?:\n|\Z))+")
_ELLIPSIS = re.compile(r"[\[(]\s*(?:…|\.\s?\.\s?\.)\s*[\])]|…|\.\s?\.\s?\.(?:\s?\.)?")
_TAKEN = "\ufffc"
_SENTENCE_END = re.compile(rf"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])|\n+|{_TAKEN}+")
_LIST_MARKER = re.compile(r"^\s*(?:[-*+•]|\d{1,3}[.)]|#{1,6})\s+")


@dataclass(frozen=True)
class Passage:
    """A piece of an answer; `quoted` is True where the answer marks it as a quotation."""

    text: str
    quoted: bool


def find_passages(answer: str) -> list[Passage]:
    """Every quotation in `answer`, and every sentence outside quotations, in the order in which they stand.

    Quotations stand between quotation marks (“”, "", «», „“, 「」, ‘’, and '' from four words on) within one
    paragraph, or in block quotes, of which each paragraph is one. A code block is one unquoted passage.
    """
    found: list[tuple[int, Passage]] = []

    def take(text: str, match: re.Match[str], *, quoted: bool) -> None:
        if WORD.search(text):
            found.append((match.start(), Passage(text.strip(), quoted)))

    rest = answer.replace("\r\n", "\n")
    for fence in _FENCE.finditer(rest):
        take(fence[2], fence, quoted=False)
    rest = _FENCE.sub(_blank, rest)
    for block in _BLOCK_QUOTE.finditer(rest):
        for paragraph in _PARAGRAPH.findall(_MARKER.sub("", block[0])):
            take(_ATTRIBUTION.sub("", paragraph.rstrip()), block, quoted=True)
    rest = _BLOCK_QUOTE.sub(_blank, rest)
    for paragraph in _PARAGRAPH.finditer(rest):
        for quote in _QUOTE.finditer(rest, paragraph.start(), paragraph.end()):
            if _is_quotation(quote):
                take(next(filter(None, quote.groups())), quote, quoted=True)
                rest = rest[: quote.start()] + _blank(quote) + rest[quote.end() :]
    start = 0
    for end in (*(match.span() for match in _SENTENCE_END.finditer(rest)), (len(rest), len(rest))):
        sentence = _LIST_MARKER.sub("", rest[start : end[0]])
        if WORD.search(sentence):
            found.append((start, Passage(sentence.strip(), quoted=False)))
        start = end[1]
    found.sort(key=lambda item: item[0])
    return [passage for _, passage in found]


def split_at_ellipses(text: str) -> list[str]:
    """The pieces of a quotation between its ellipses (…, ..., [...]); one piece if it has none."""
    return [piece.strip() for piece in _ELLIPSIS.split(text) if WORD.search(piece)]


def split_by_words(text: str, limit_words: int) -> list[str]:
    """`text` in pieces of at most `limit_words` words."""
    starts = [match.start() for match in WORD.finditer(text)][::limit_words]
    cuts = [0, *starts[1:], len(text)]
    return [text[begin:end].strip() for begin, end in pairwise(cuts)]


def _is_quotation(quote: re.Match[str]) -> bool:
    single = quote["single"]
    return single is None or len(WORD.findall(single)) >= _SINGLE_QUOTED_WORDS


def _blank(match: re.Match[str]) -> str:
    return _TAKEN * len(match[0])
