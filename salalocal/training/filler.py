"""The tokenised corpus as a source of filler text, with the places where a sentence may be put in between.

Reads what `corpus.py` wrote; knows no questions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from salalocal.errors import BadDocument

CORPUS_FILE = "corpus.npz"
TOKENIZER_FILE = "tokenizer.json"
SYNONYM_FILE = "synonyms.json"


@dataclass(frozen=True)
class Chunk:
    """Tokens of one text: `ids` [n]. start: where they stand in the corpus; None when they do not."""

    ids: np.ndarray
    start: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Corpus:
    """Token ids, texts and passages; read-only and shared by forked workers.

    Raises BadDocument when the folder holds no corpus.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / CORPUS_FILE
        if not path.is_file():
            raise BadDocument(f"{path} is missing; python -m salalocal.training.corpus builds it")
        with np.load(path) as arrays:
            self.token_ids: np.ndarray = arrays["token_ids"]
            self._starts: np.ndarray = arrays["text_starts"]
            weights = arrays["text_weights"].astype(np.float64) * np.diff(self._starts)
            held_out = arrays["text_held_out"]
            self.passage_kinds: np.ndarray = arrays["passage_kinds"]
            self.passage_starts: np.ndarray = arrays["passage_starts"]
            self.passage_ends: np.ndarray = arrays["passage_ends"]
            self._keys: bytes = arrays["passage_keys"].tobytes()
            self._key_starts: np.ndarray = arrays["passage_key_starts"]
        self._odds = {}
        for flag in (False, True):
            odds = np.where(held_out == flag, weights, 0.0)
            self._odds[flag] = np.cumsum(odds / odds.sum())
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        synonyms = folder / SYNONYM_FILE
        self.synonyms: dict[str, list[str]] = json.loads(synonyms.read_text()) if synonyms.is_file() else {}
        pieces = [self.tokenizer.decode([i], skip_special_tokens=False) for i in range(self.tokenizer.get_vocab_size())]
        self._pieces = pieces
        self._ends_line = np.array([piece.endswith("\n") for piece in pieces])
        self._ends_sentence = np.array([piece.endswith((".", "!", "?")) for piece in pieces])
        self._begins_blank = np.array([piece.startswith(" ") and len(piece) > 1 for piece in pieces])

    def draw(self, rng: np.random.Generator, tokens: int, held_out: bool) -> Chunk:
        """A run of at most `tokens` tokens of one text, from the start of a line where one is near."""
        odds = self._odds[held_out]
        text = min(int(np.searchsorted(odds, rng.random(), side="right")), len(odds) - 1)
        low, high = int(self._starts[text]), int(self._starts[text + 1])
        start = int(rng.integers(low, max(low + 1, high - tokens)))
        lines = np.flatnonzero(self._ends_line[self.token_ids[start : min(start + 200, high)]])
        if start > low and len(lines) and start + int(lines[0]) + 1 < high:
            start += int(lines[0]) + 1
        return Chunk(self.token_ids[start : min(start + tokens, high)], start)

    def text(self, chunk: Chunk) -> tuple[str, np.ndarray]:
        """The text of a chunk, and where each token ends in it. Characters of more than one token come out as U+FFFD,
        once for each."""
        parts = [self._pieces[i] for i in chunk.ids.tolist()]
        return "".join(parts), np.cumsum([len(part) for part in parts])

    def gaps(self, chunk: Chunk, at_lines: bool) -> np.ndarray:
        """Offsets within the chunk where a sentence may go in: before a line, or between two sentences of one."""
        before, after = chunk.ids[:-1], chunk.ids[1:]
        fits = self._ends_line[before] if at_lines else self._ends_sentence[before] & self._begins_blank[after]
        return np.flatnonzero(fits) + 1

    def passages(self, chunk: Chunk) -> np.ndarray:
        """Indices of the passages whose answers lie inside the chunk."""
        if chunk.start is None:
            return np.arange(0)
        end = chunk.start + len(chunk)
        first, last = np.searchsorted(self.passage_starts, [chunk.start, end])
        inside = np.arange(first, last)
        return inside[self.passage_ends[inside] <= end]

    def key(self, passage: int) -> str:
        """The words that name what a passage answers."""
        start, end = (int(edge) for edge in self._key_starts[passage : passage + 2])
        return self._keys[start:end].decode()
