"""The sentences that were looked at most, as a document of their own: what a closer look reads.

Knows documents and how many tokens and characters each of their spans has. Knows no model and no tokenizer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from salalocal.documents import Document, SourceFile, Span
from salalocal.evidence.read_passages import WINDOW_TOKENS, FileTokens, sentence_edges, windows

_BETWEEN = "\n\n"


def excerpts(mass: NDArray[np.float64], files: Sequence[FileTokens], tokens: int) -> Document | None:
    """The whole sentences around the tokens with the most attention, in the order in which they stand.

    Every excerpt is a span that knows its page and line, every file has the name that places give it.

    Args:
        mass: attention of every position of the prompt.
        files: those of the prompt, in order.
        tokens: attention is compared window by window; so many tokens of windows are taken, and their sentences are
            completed, which about doubles them.

    Returns:
        None where no attention went to the files.
    """
    stretches: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for number, low, high in windows(mass, files, max(1, tokens // WINDOW_TOKENS)):
        for index, begin, end in _sentences(files[number], low, high):
            stretches[number][index].append((begin, end))
    made = []
    for number, found in sorted(stretches.items()):
        spans = [span for index in sorted(found) for span in _spans(files[number], index, found[index])]
        if spans:
            made.append(SourceFile(files[number].name, tuple(spans)))
    return Document("excerpts", tuple(made)) if made else None


def _sentences(file: FileTokens, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """(span, first character, last + 1) of the sentences that hold the tokens [low, high), of each span together."""
    while low < high:
        index = bisect_right(file.ends, low) - 1
        stop = min(high, file.ends[index + 1])
        if file.spans[index].text:
            last, edges = sentence_edges(file, index, low, stop)
            yield index, edges[bisect_right(edges, last[0]) - 1], edges[bisect_left(edges, last[-1] + 1)]
        low = stop


def _spans(file: FileTokens, index: int, stretches: Sequence[tuple[int, int]]) -> Iterator[Span]:
    """The stretches as spans; those that touch are one."""
    joined: list[list[int]] = []
    for begin, end in sorted(stretches):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    source = file.spans[index]
    for begin, end in joined:
        text = source.text[begin:end]
        if text.strip():
            lead = len(text) - len(text.lstrip("\n"))
            place = source.place(file.name, begin + lead)
            yield Span(text.strip("\n").rstrip() + _BETWEEN, page=place.page, line=place.line)
