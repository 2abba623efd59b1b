"""Puts the documents of a sequence together: files of filler with a scene's statements in between. Asks nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from salalocal.training import prompt
from salalocal.training.cloze import ClozeMaker
from salalocal.training.filler import Chunk, Corpus
from salalocal.training.lexicon import Lexicon
from salalocal.training.monotony import Monotony
from salalocal.training.scenes import Scene

CLOZE_TOKENS = 90
"""A question about any sentence is made for so many tokens of filler."""
MONOTONY_SHARE, MONOTONY_TOKENS = 0.35, 1800
"""Of the filler's texts so many repeat a few sentences, taken from so many tokens, with other words."""


@dataclass
class Region:
    """The documents of a sequence.

    ids: their tokens. spans: per statement the (start, end) token range of each of its asks' spans and of the whole of
    it, relative to the first id. passages: (passage, start, end) of usable ones. clozes: (question, start, end).
    """

    ids: list[int] = field(default_factory=list)
    spans: list[list[tuple[int, int]]] = field(default_factory=list)
    passages: list[tuple[int, int, int]] = field(default_factory=list)
    clozes: list[tuple[str, int, int]] = field(default_factory=list)


class RegionMaker:
    """Draws documents from a corpus, with the generator and the lexicon of whoever asks about them."""

    def __init__(self, corpus: Corpus, rng: np.random.Generator, lexicon: Lexicon, held_out: bool) -> None:
        self._corpus = corpus
        self._rng = rng
        self._lexicon = lexicon
        self._held_out = held_out

    def region(self, scene: Scene, budget: int) -> Region:
        """Files of filler with the scene's statements in between."""
        lexicon, rng = self._lexicon, self._rng
        inline = [not s.is_line and lexicon.flip(0.6) for s in scene.statements]
        texts = [f" {s.text}" if flows else f"{s.text}\n" for s, flows in zip(scene.statements, inline, strict=True)]
        encoded = encode(self._corpus, texts)
        headers = [e[0] for e in encode(self._corpus, [prompt.header(lexicon) for _ in range(1 + budget // 1500)])]
        closing = encode(self._corpus, ["\n\n"])[0][0]
        headers = headers[: max(1, lexicon.between(1, len(headers)))]
        left = budget - sum(len(e[0]) for e in encoded) - sum(map(len, headers)) - len(closing) * len(headers)
        chunks: list[Chunk] = []
        for index in range(len(headers)):
            share = max(24, left // (len(headers) - index))
            want = share if index == len(headers) - 1 else int(share * rng.uniform(0.5, 1.5))
            chunk = self._corpus.draw(rng, max(24, min(want, left)), self._held_out)
            if not self._held_out and lexicon.flip(MONOTONY_SHARE):
                chunk = self._monotonous(len(chunk)) or chunk
            chunks.append(chunk)
            left = max(0, left - len(chunk))
        slots = self._slots(chunks, inline)
        region = Region()
        ids, turn = region.ids, 0
        for index, chunk in enumerate(chunks):
            ids.extend(headers[index])
            first = len(ids)
            shifts: list[tuple[int, int]] = []
            position = 0
            while turn < len(slots) and slots[turn][0] == index:
                gap = slots[turn][1]
                ids.extend(chunk.ids[position:gap].tolist())
                position = gap
                statement_ids, offsets = encoded[turn]
                region.spans.append(self._spans(scene, turn, offsets, inline[turn], len(ids)))
                ids.extend(statement_ids)
                shifts.append((gap, len(ids) - gap))
                turn += 1
            ids.extend(chunk.ids[position:].tolist())
            for passage in self._corpus.passages(chunk).tolist():
                assert chunk.start is not None
                low = int(self._corpus.passage_starts[passage]) - chunk.start
                high = int(self._corpus.passage_ends[passage]) - chunk.start
                if (base := _shifted(low, high, first, shifts)) is not None:
                    region.passages.append((passage, base + low, base + high))
            for question, low, high in self._clozes(chunk):
                if (base := _shifted(low, high, first, shifts)) is not None:
                    region.clozes.append((question, base + low, base + high))
            ids.extend(closing)
        return region

    def _monotonous(self, tokens: int) -> Chunk | None:
        """So many tokens that repeat a few sentences of a text; None where it has too few."""
        prose, _ = self._corpus.text(self._corpus.draw(self._rng, MONOTONY_TOKENS, self._held_out))
        monotony = Monotony(self._lexicon, prose)
        if not monotony.patterns:
            return None
        ids: list[int] = []
        while len(ids) < tokens:
            ids += encode(self._corpus, [monotony.text(4 * tokens)])[0][0]
        return Chunk(np.array(ids[:tokens], np.uint16))

    def _clozes(self, chunk: Chunk) -> Iterator[tuple[str, int, int]]:
        """(question, first token, last + 1) about sentences of a chunk of the corpus, relative to its start."""
        if chunk.start is None:
            return
        text, ends = self._corpus.text(chunk)
        starts = np.concatenate([[0], ends[:-1]])
        maker = ClozeMaker(self._lexicon, self._corpus.synonyms, text)
        for cloze in maker.draw(1 + len(chunk) // CLOZE_TOKENS):
            low = int(np.searchsorted(ends, cloze.start, side="right"))
            high = int(np.searchsorted(starts, cloze.end, side="left"))
            # A token of a blank and the word after it begins one character early.
            if starts[low] in (cloze.start, cloze.start - 1) and ends[high - 1] == cloze.end:
                yield cloze.question, low, high

    def _slots(self, chunks: list[Chunk], inline: list[bool]) -> list[tuple[int, int]]:
        """(chunk, offset) for every statement, in rising order; sentences between sentences, lines between lines."""
        sizes = np.array([len(chunk) for chunk in chunks], float)
        counts = self._rng.multinomial(len(inline), sizes / sizes.sum())
        slots: list[tuple[int, int]] = []
        statement = 0
        for index, count in enumerate(counts):
            between = {flag: self._corpus.gaps(chunks[index], at_lines=not flag) for flag in (True, False)}
            depths = np.sort(self._rng.random(count))
            last = 0
            for depth in depths:
                options = between[inline[statement]]
                options = options[options >= last]
                target = depth * len(chunks[index])
                # Where the chunk has no such gap the statement goes to its end.
                last = (
                    int(options[min(np.searchsorted(options, target), len(options) - 1)])
                    if len(options)
                    else max(last, len(chunks[index]))
                )
                slots.append((index, last))
                statement += 1
        return slots

    def _spans(
        self, scene: Scene, statement: int, offsets: list[tuple[int, int]], flows: bool, base: int
    ) -> list[tuple[int, int]]:
        """Token ranges of every span asked of this statement, in the order of `Statement.asks`, and behind them the
        range of the whole text."""
        text = scene.statements[statement]
        shift = 1 if flows else 0
        wanted = [*(span for ask in text.asks for span in ask.spans), (0, len(text.text))]
        found = []
        for low, high in wanted:
            inside = [i for i, (a, b) in enumerate(offsets) if b > low + shift and a < high + shift]
            exact = offsets[inside[0]][0] >= low + shift - 1 and offsets[inside[-1]][1] == high + shift
            found.append((base + inside[0], base + inside[-1] + 1) if exact else (-1, -1))
        return found


def encode(corpus: Corpus, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Each text's token ids, and the (start, end) characters of each, without special tokens."""
    encodings = corpus.tokenizer.encode_batch(texts, add_special_tokens=False)
    return [(encoding.ids, encoding.offsets) for encoding in encodings]


def _shifted(low: int, high: int, first: int, shifts: list[tuple[int, int]]) -> int | None:
    """What to add to tokens [low, high) of a chunk that begins at `first`, after statements were put in at `shifts`
    (offset, what to add from there on); None where one of them tore the tokens apart."""
    gaps = [gap for gap, _ in shifts]
    before = int(np.searchsorted(gaps, low, side="right"))
    if before != int(np.searchsorted(gaps, high, side="left")):
        return None
    return shifts[before - 1][1] if before else first
