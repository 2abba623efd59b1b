"""The places of an answer's passages in the documents.

Knows how alike two passages are and finds the likest. The documents' words become numbers, and every pair of
neighbouring words an entry in a sorted array. A passage looks up its pairs; where many of them lie in its order close
together, the words there are aligned with its own and compared. So the work for a passage does not grow with the
documents, but for words that are everywhere.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from salalocal.documents import Document, Place, SourceFile, Span
from salalocal.evidence.passages import Passage, find_passages, split_at_ellipses, split_by_words
from salalocal.evidence.words import WORD, agreeing_letters, core, normal, plain, sign_likeness, word_count, words_of

QUOTED_THRESHOLD = 0.8
"""A quoted passage that matches worse than this is not in the text."""
UNQUOTED_THRESHOLD = 0.9
"""An unquoted sentence that matches worse than this is the answer's own. At 0.8 a sentence with one changed phrase
("jumped over the fence" for "jumps over dog") counted as found."""
UNQUOTED_WORDS = 6.0
"""Shorter unquoted sentences are common property and have no one place."""
FUZZY_WORDS = 3.0
"""Passages of fewer words are only matched exactly."""

_WHOLE_THRESHOLD = 0.95  # a quotation with an ellipsis that matches this well has it from the text itself
_MAX_WORDS = 200  # a longer passage is matched in parts: alignment takes longer than in proportion
_CANDIDATES = 4
_MAX_OCCURRENCES = 100_000  # of a passage's pairs all told; its rarer pairs tell its place, pairs like "of the" do not
_BETWEEN_FILES = 0
# A passage with a number that the text does not have there says something else, however alike the rest.
_OTHER_NUMBERS = 0.5


@dataclass(frozen=True)
class QuoteMatch:
    """A passage of an answer, and where it stands in the documents.

    `place` is where the match begins; None says that a quoted passage is not in the text. `score` is 1.0 for the same
    words in the same order with the same signs between them, and falls towards 0.0 with every difference.
    `quoted` is True if the answer marks `text` as a quotation. `found` are the documents' own words there, for
    showing what really stands at the place where the score is below 1.0; None without a place.
    """

    text: str
    place: Place | None
    score: float
    quoted: bool
    found: str | None = None


def match_quotes(answer: str, documents: Sequence[Document]) -> tuple[QuoteMatch, ...]:
    """The quotes in `answer`, each with its place or None, and its unquoted sentences that are in the text.

    For several answers on the same documents, keep a `QuoteIndex`.
    """
    return QuoteIndex(documents).match(answer)


@dataclass(frozen=True)
class _Hit:
    """A stretch of the documents' words, `first` to `last` inclusive, and how well it fits."""

    first: int
    last: int
    score: float


class QuoteIndex:
    """The words of some documents, indexed once. It keeps the documents' texts and never changes."""

    def __init__(self, documents: Sequence[Document]) -> None:
        """Reads all words: about a second, and 40 bytes of memory a word, for 4 MB of English."""
        self._spans: list[tuple[str, Span]] = []
        self._span_starts: list[int] = []  # of each span, in a count of all characters
        numbers: dict[str, int] = {}
        ids, starts = array("q", [_BETWEEN_FILES]), array("q", [0])
        position = 0
        for name, file in named_files(documents):
            for span in file.spans:
                self._spans.append((name, span))
                self._span_starts.append(position)
                for word in WORD.finditer(span.text):
                    ids.append(numbers.setdefault(normal(word[0]), len(numbers) + 1))
                    starts.append(position + word.start())
                position += len(span.text) + 1
            ids.append(_BETWEEN_FILES)
            starts.append(position)
        self._numbers = numbers
        self._words = ["", *numbers]
        self._ids: NDArray[np.int64] = np.array(ids, dtype=np.int64)
        self._starts = starts
        pairs = self._pairs(self._ids)
        self._order = np.argsort(pairs, kind="stable")
        self._sorted_pairs = pairs[self._order]

    def match(self, answer: str) -> tuple[QuoteMatch, ...]:
        """As `match_quotes`, in the order of the answer; a passage that it repeats is reported once."""
        found: dict[tuple[str, bool], QuoteMatch | None] = {}  # None: nothing to report
        for passage in find_passages(answer):
            self._match_passage(passage, found)
        return tuple(match for match in found.values() if match is not None)

    def _match_passage(self, passage: Passage, found: dict[tuple[str, bool], QuoteMatch | None]) -> None:
        """Adds to `found` what there is to report on the parts of `passage` that are not there yet."""
        pieces = split_at_ellipses(passage.text) if passage.quoted else [passage.text]
        if len(pieces) > 1:
            whole = [self._best_hit(piece, 0) for piece in split_by_words(passage.text, _MAX_WORDS)]
            if all(hit is not None and hit.score >= _WHOLE_THRESHOLD for hit in whole):
                pieces = [passage.text]
        after = 0  # pieces of one quotation follow one another
        for piece in pieces:
            for text in split_by_words(piece, _MAX_WORDS):
                key = (text, passage.quoted)
                if key in found or (not passage.quoted and word_count(words_of(text)) < UNQUOTED_WORDS):
                    continue
                hit = self._best_hit(text, after)
                score = 0.0 if hit is None else round(hit.score, 4)
                if hit is not None and score >= (QUOTED_THRESHOLD if passage.quoted else UNQUOTED_THRESHOLD):
                    after = hit.last + 1
                    there = " ".join(self._text(hit.first, hit.last, before=False, behind=False).split())
                    found[key] = QuoteMatch(text, self._place(hit.first), score, passage.quoted, there)
                else:
                    found[key] = QuoteMatch(text, None, score, quoted=True) if passage.quoted else None

    # Finding

    def _best_hit(self, text: str, after: int) -> _Hit | None:
        """The likest stretch; of equals the first at or after word `after`, else the first of all."""
        words = words_of(text)
        query = np.array([self._numbers.get(word, -1) for word in words], dtype=np.int64)
        hits = list(self._exact_hits(text, query, after))
        if not hits and word_count(words) >= FUZZY_WORDS:
            for start, end in self._windows(query):
                hit = self._align(text, words, query, start, end)
                if hit is not None:
                    hits.append(hit)
        return max(hits, key=lambda hit: (hit.score, hit.first >= after, -hit.first), default=None)

    def _exact_hits(self, text: str, query: NDArray[np.int64], after: int) -> Iterator[_Hit]:
        """The first stretch of exactly these words and signs, and the first from word `after` on."""
        length = len(query)
        if length == 0 or (query < 0).any() or length > len(self._ids):
            return
        if length == 1:
            found = np.flatnonzero(self._ids == query[0])
        else:  # start from the rarest pair
            pairs = self._pairs(query)
            low = np.searchsorted(self._sorted_pairs, pairs, "left")
            high = np.searchsorted(self._sorted_pairs, pairs, "right")
            rarest = int(np.argmin(high - low))
            found = np.sort(self._order[low[rarest] : high[rarest]]) - rarest
            found = found[(found >= 0) & (found + length <= len(self._ids))]
            for offset in range(length):
                found = found[self._ids[found + offset] == query[offset]]
        wanted, before, behind = core(text)
        wanted = plain(wanted)
        agrees: dict[str, bool] = {}  # the same words often stand in the same text again
        for positions in (found, found[found >= after]):
            for first in positions.tolist():
                there = self._text(first, first + length - 1, before, behind)
                if there not in agrees:
                    agrees[there] = plain(there) == wanted
                if agrees[there]:
                    yield _Hit(first, first + length - 1, 1.0)
                    break

    def _pairs(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """A number for each word and its next; the same pairs give the same numbers."""
        return ids[:-1] * (len(self._words) + 1) + ids[1:]

    def _windows(self, query: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Stretches of words in one file, end exclusive, in which many pairs of the query stand in its order."""
        offsets = np.flatnonzero((query[:-1] > 0) & (query[1:] > 0))
        pairs = self._pairs(query)[offsets]
        low = np.searchsorted(self._sorted_pairs, pairs, "left")
        counts = np.searchsorted(self._sorted_pairs, pairs, "right") - low
        rarest = np.argsort(counts, kind="stable")
        rarest = rarest[np.cumsum(counts[rarest]) <= max(_MAX_OCCURRENCES, counts.min(initial=0))]
        offsets, low, counts = offsets[rarest], low[rarest], counts[rarest]
        if not counts.sum():
            return
        # Every occurrence of a pair says where the passage would begin; rare pairs say it louder.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = self._order[np.repeat(low, counts) + within] - np.repeat(offsets, counts)
        weights = np.repeat(np.log1p(len(self._ids) / np.maximum(counts, 1)), counts)
        width = max(8, len(query) // 2)
        bins, index = np.unique(begins // width, return_inverse=True)
        votes = np.bincount(index, weights)
        neighbours = np.flatnonzero(np.diff(bins) == 1)
        both = votes.copy()  # with the next bin: words left out or put in move a begin across the edge
        both[neighbours] += votes[neighbours + 1]
        for chosen in np.argsort(-both, kind="stable")[:_CANDIDATES].tolist():
            start = max(0, int(bins[chosen]) * width)
            end = min(len(self._ids), start + 3 * width + len(query))
            edges = [start, *(start + np.flatnonzero(self._ids[start:end] == _BETWEEN_FILES)).tolist(), end]
            yield from pairwise(edges)

    def _align(self, text: str, words: list[str], query: NDArray[np.int64], start: int, end: int) -> _Hit | None:
        """The best run of the window's words against the passage's."""
        window = self._ids[start:end].tolist()
        matcher = SequenceMatcher(None, query.tolist(), window, autojunk=False)
        blocks = _densest(matcher.get_matching_blocks()[:-1], len(words))
        if not blocks:
            return None
        first, last = blocks[0].b, blocks[-1].b + blocks[-1].size - 1
        theirs = [self._words[number] for number in window]
        agreed = float(sum(len(word) for block in blocks for word in theirs[block.b : block.b + block.size]))
        total = sum(map(len, words)) + sum(map(len, theirs[first : last + 1]))
        if words == theirs[first : last + 1]:
            wanted, before, behind = core(text)
            score = sign_likeness(wanted, self._text(start + first, start + last, before, behind))
        else:
            for here, there in pairwise(blocks):
                mine = "".join(words[here.a + here.size : there.a])
                agreed += agreeing_letters(mine, "".join(theirs[here.b + here.size : there.b]))
            score = min(2.0 * agreed / total, 0.99)
            if not _numbers_of(words) <= _numbers_of(theirs[first : last + 1]):
                score = min(score, _OTHER_NUMBERS)
        return _Hit(start + first, start + last, score)

    # Places

    def _locate(self, word: int) -> tuple[int, int]:
        """The span that word `word` begins in, and its offset there."""
        position = self._starts[word]
        index = bisect_right(self._span_starts, position) - 1
        return index, position - self._span_starts[index]

    def _place(self, word: int) -> Place:
        index, offset = self._locate(word)
        name, span = self._spans[index]
        return span.place(name, offset)

    def _text(self, first: int, last: int, before: bool, behind: bool) -> str:
        """The text from word `first` to word `last`, across pages, and the character before or behind if asked for."""
        first_span, begin = self._locate(first)
        last_span, last_start = self._locate(last)
        word = WORD.match(self._spans[last_span][1].text, last_start)
        end = (word.end() if word else last_start) + behind
        begin = max(0, begin - before)
        if first_span == last_span:
            return self._spans[first_span][1].text[begin:end]
        between = [self._spans[index][1].text for index in range(first_span + 1, last_span)]
        return "\n".join((self._spans[first_span][1].text[begin:], *between, self._spans[last_span][1].text[:end]))


def named_files(documents: Sequence[Document]) -> Iterator[tuple[str, SourceFile]]:
    """Files with the names that places give them: their paths, after the document's name where two are the same."""
    paths = Counter(file.path for document in documents for file in document.files)
    for document in documents:
        for file in document.files:
            yield (file.path if paths[file.path] == 1 else f"{document.name}/{file.path}"), file


def _numbers_of(words: Sequence[str]) -> set[str]:
    """The words with a digit in them."""
    return {word for word in words if any(character.isdigit() for character in word)}


def _densest(blocks: Sequence[Match], query_words: int) -> Sequence[Match]:
    """The run of blocks with the best share of matched words: common words far off match by chance."""
    if not blocks:
        return blocks
    sizes = np.cumsum([0, *(block.size for block in blocks)])
    begins = np.array([block.b for block in blocks])
    ends = np.array([block.b + block.size for block in blocks])
    matched = sizes[None, 1:] - sizes[:-1, None]
    shares = np.where(matched > 0, matched / (query_words + np.maximum(ends[None, :] - begins[:, None], 1)), -1.0)
    first, last = np.unravel_index(int(np.argmax(shares)), shares.shape)
    return blocks[int(first) : int(last) + 1]
