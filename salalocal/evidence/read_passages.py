"""Which sentences of the documents an answer was read from: attention per token into passages with places.

Knows documents and how many tokens each of their spans has. Knows no model and no tokenizer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from salalocal.documents import Place, SourceFile, Span

MOST_PASSAGES = 4
LEAST_SHARE = 0.04
"""Of the attention that went to the documents; a passage with less is one of many that were looked at in passing."""
LONGEST_PASSAGE = 400
_WINDOW = 64
_CANDIDATE_WINDOWS = 24
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\n\s*\n|\n(?=\s*(?:[-*•#]|\d+[.)]|def |class ))")


@dataclass(frozen=True)
class ReadPassage:
    """A sentence that the attention layers read for an answer.

    `share` is its part of the attention that went to the documents, all layers, heads and tokens of the answer
    together.
    """

    text: str
    place: Place
    share: float


@dataclass(frozen=True)
class FileTokens:
    """One file in a prompt.

    Attributes:
        file: its spans.
        start: position of its first token in the prompt.
        ends: token after each piece, counted from `start`: first the line with the path, then span after span.
        decode: text of the file's tokens [low, high), counted from `start`.
    """

    file: SourceFile
    start: int
    ends: Sequence[int]
    decode: Callable[[int, int], str]


def read_passages(mass: NDArray[np.float64], files: Sequence[FileTokens]) -> tuple[ReadPassage, ...]:
    """The sentences with the most attention, most first.

    Args:
        mass: attention of every position of the prompt.
        files: those of the prompt, in order.
    """
    total = sum(float(mass[file.start : file.start + file.ends[-1]].sum()) for file in files)
    if not total:
        return ()
    found: dict[tuple[int, int, int, int], float] = {}
    for number, low, high in _windows(mass, files):
        for key, share in _sentences(number, files[number], low, high, mass):
            found[key] = found.get(key, 0.0) + share / total
    best = sorted(found.items(), key=lambda item: -item[1])[:MOST_PASSAGES]
    return tuple(_passage(files[key[0]], *key[1:], share) for key, share in best if share >= LEAST_SHARE)


def _windows(mass: NDArray[np.float64], files: Sequence[FileTokens]) -> Iterator[tuple[int, int, int]]:
    """(file, first token, last + 1) of the stretches with the most attention; none twice, in no file's path line."""
    best: list[tuple[float, int, int, int]] = []
    for number, file in enumerate(files):
        for low in range(file.ends[0], file.ends[-1], _WINDOW):
            high = min(low + _WINDOW, file.ends[-1])
            weight = float(mass[file.start + low : file.start + high].sum())
            if weight:
                best.append((weight, number, low, high))
    best.sort(reverse=True)
    yield from ((number, low, high) for _, number, low, high in best[:_CANDIDATE_WINDOWS])


def _sentences(
    number: int, file: FileTokens, low: int, high: int, mass: NDArray[np.float64]
) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    """((file, span, first character, last + 1), attention) of the sentences in tokens [low, high)."""
    while low < high:
        index = bisect_right(file.ends, low) - 1
        begin, stop = file.ends[index], min(high, file.ends[index + 1])
        span = file.file.spans[index]
        at = min(len(file.decode(begin, low)), len(span.text))
        edges = _edges(span, at)
        for token in range(low, stop):
            size = len(file.decode(token, token + 1))
            # A token of a blank and a word belongs to the word's sentence.
            inside = min(at + size - 1, len(span.text) - 1)
            sentence = bisect_right(edges, max(0, inside)) - 1
            key = (number, index, edges[sentence], edges[sentence + 1])
            yield key, float(mass[file.start + token])
            at += size
        low = stop


def _edges(span: Span, at: int) -> list[int]:
    """Where sentences begin around character `at`; reaches far enough for one window of tokens."""
    reach = 40 * _WINDOW
    low, high = max(0, at - reach), min(len(span.text), at + reach)
    inner = [match.end() for match in _SENTENCE_END.finditer(span.text, low, high)]
    return sorted({0, low, *inner, len(span.text)}) if span.text else [0, 0]


def _passage(file: FileTokens, index: int, low: int, high: int, share: float) -> ReadPassage:
    span = file.file.spans[index]
    text = span.text[low:high]
    lead = len(text) - len(text.lstrip())
    words = " ".join(text.split())
    if len(words) > LONGEST_PASSAGE:
        words = words[: LONGEST_PASSAGE - 1].rstrip() + "…"
    return ReadPassage(words, span.place(file.file.path, low + lead), share)
