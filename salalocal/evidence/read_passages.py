"""Which sentences of the documents an answer was read from: attention per token into passages with places.

Knows documents and how many tokens and characters each of their spans has. Knows no model and no tokenizer.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from numpy.typing import NDArray

from salalocal.documents import Place, Span
from salalocal.evidence.words import words_of

MOST_PASSAGES = 4
LEAST_SHARE = 0.04
"""Of the attention that went to the documents; a passage with less is one of many that were looked at in passing."""
LONGEST_PASSAGE = 400
LEAST_ANSWERING_SHARE = 0.25
"""A passage with less is one of several that were read, not the one that was answered from."""
WINDOW_TOKENS = 64
_CANDIDATE_WINDOWS = 24
_LONGEST_SENTENCE = 1200  # what goes on for longer than this is no sentence, but code or a table
_LONGEST_WORD = 100
_SENTENCE_END = re.compile(
    r"(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])(?![。！？])[”’」』）]*\s*|\n\s*\n|\n(?=\s*(?:[-*•#]|\d+[.)]|def |class ))"
)
_LINE_END = re.compile(r"\n")


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
        name: what places call it.
        spans: its text.
        start: position of its first token in the prompt.
        ends: token after each piece, counted from `start`: first the line with the path, then span after span.
        characters: how many characters begin in each of its tokens; one of several tokens begins in the first.
    """

    name: str
    spans: Sequence[Span]
    start: int
    ends: Sequence[int]
    characters: NDArray[np.uint16]


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
    for number, low, high in windows(mass, files, _CANDIDATE_WINDOWS):
        for key, share in _sentences(number, files[number], low, high, mass):
            found[key] = found.get(key, 0.0) + share / total
    best = sorted(found.items(), key=lambda item: -item[1])
    passages = (_passage(files[key[0]], *key[1:], share) for key, share in best if share >= LEAST_SHARE)
    return tuple(islice((passage for passage in passages if passage.text), MOST_PASSAGES))


def answered_in(answer: str, passages: Sequence[ReadPassage]) -> ReadPassage | None:
    """The passage that may be shown as the place of a whole short answer, or None.

    An answer of a few words ("30 June 1984") stands in many places of a book, so that to look it up says nothing; the
    sentence that was read most says where it comes from. But attention alone is no proof: models also look at
    sentences that have nothing to do with the answer. So both must agree: a good part of the attention went to that
    one sentence, and the answer's own words stand in it, one after the other; case, white space and a full stop at
    the end make no difference.
    """
    wanted = words_of(answer)
    if not wanted or not passages or passages[0].share < LEAST_ANSWERING_SHARE:
        return None
    there = words_of(passages[0].text)
    begins = range(len(there) - len(wanted) + 1)
    return passages[0] if any(there[at : at + len(wanted)] == wanted for at in begins) else None


def windows(mass: NDArray[np.float64], files: Sequence[FileTokens], most: int) -> Iterator[tuple[int, int, int]]:
    """(file, first token, last + 1) of the stretches with the most attention; none twice, in no file's path line."""
    best: list[tuple[float, int, int, int]] = []
    for number, file in enumerate(files):
        for low in range(file.ends[0], file.ends[-1], WINDOW_TOKENS):
            high = min(low + WINDOW_TOKENS, file.ends[-1])
            weight = float(mass[file.start + low : file.start + high].sum())
            if weight:
                best.append((weight, number, low, high))
    best.sort(reverse=True)
    yield from ((number, low, high) for _, number, low, high in best[:most])


def _sentences(
    number: int, file: FileTokens, low: int, high: int, mass: NDArray[np.float64]
) -> Iterator[tuple[tuple[int, int, int, int], float]]:
    """((file, span, first character, last + 1), attention) of the sentences in tokens [low, high)."""
    while low < high:
        index = bisect_right(file.ends, low) - 1
        stop = min(high, file.ends[index + 1])
        if file.spans[index].text:
            last, edges = sentence_edges(file, index, low, stop)
            for token, at in zip(range(low, stop), last, strict=True):
                sentence = bisect_right(edges, at) - 1
                key = (number, index, edges[sentence], edges[sentence + 1])
                yield key, float(mass[file.start + token])
        low = stop


def sentence_edges(file: FileTokens, index: int, low: int, stop: int) -> tuple[list[int], list[int]]:
    """Of each token in [low, stop) of span `index` its last character, and where the sentences of these characters
    begin and end, rising, with some around them."""
    text = file.spans[index].text
    # Of each token the last character, so that one of a blank and a word belongs to the word's sentence.
    begun = int(file.characters[file.ends[index] : low].sum()) + file.characters[low:stop].cumsum(dtype=np.int64)
    last = np.clip(begun - 1, 0, len(text) - 1).tolist()
    return last, _edges(text, last[0], last[-1])


def _edges(text: str, first: int, last: int) -> list[int]:
    """Where the sentences that hold the characters `first` to `last` begin and end, rising, with some around them.

    What is too long for a sentence falls into its lines, and a line that is too long into pieces that can be shown
    whole. An edge depends on the text near it and not on `first` and `last`, so every window finds the same ones.
    """
    low, high = max(0, first - 2 * _LONGEST_SENTENCE), min(len(text), last + 1 + 2 * _LONGEST_SENTENCE)
    edges = [low, *(match.end() for match in _SENTENCE_END.finditer(text, low, high)), high]
    edges = _more(edges, (match.end() for match in _LINE_END.finditer(text, low, high)))
    step = LONGEST_PASSAGE - _LONGEST_WORD
    grid = range(max(1, low // step) * step, high, step)
    return _more(edges, (max(at, text.find(" ", at, at + _LONGEST_WORD)) for at in grid))


def _more(edges: Sequence[int], others: Iterator[int]) -> list[int]:
    """`edges` with those of `others` that lie in a stretch too long for a sentence."""
    edges = sorted(set(edges))
    too_long = {a for a, b in pairwise(edges) if b - a > _LONGEST_SENTENCE}
    inside = (at for at in others if edges[0] < at < edges[-1] and edges[bisect_right(edges, at) - 1] in too_long)
    return sorted({*edges, *inside})


def _passage(file: FileTokens, index: int, low: int, high: int, share: float) -> ReadPassage:
    span = file.spans[index]
    text = span.text[low:high]
    lead = len(text) - len(text.lstrip())
    words = " ".join(text.split())
    if len(words) > LONGEST_PASSAGE:
        words = words[: LONGEST_PASSAGE - 1].rstrip() + "…"
    return ReadPassage(words, span.place(file.name, low + lead), share)
