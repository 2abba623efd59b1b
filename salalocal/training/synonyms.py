"""Other words for a word, from WordNet's files: those of its commonest sense, and broader ones. Knows no sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOST = 4
"""Words of one meaning that are kept; WordNet names the commoner ones first."""
MOST_BROADER = 2
"""And so many of the next broader meaning: "instrument" for "violin"."""
_PARTS = ("noun", "verb", "adj", "adv")
_BROADER = "@"


@dataclass(frozen=True)
class _Meaning:
    """Its plain lower-case words, and the offset of the next broader meaning ("" for none)."""

    words: list[str]
    broader: str


def read_synonyms(folder: Path) -> dict[str, list[str]]:
    """Single word -> single words that share its most frequent sense, then broader ones; `folder` holds `index.*` and
    `data.*`.

    Words that WordNet counted in no text are left out: their first sense is a guess.
    """
    found: dict[str, list[str]] = {}
    for part in _PARTS:
        meanings = dict(_meanings(folder / f"data.{part}"))
        for line in (folder / f"index.{part}").read_text("utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields = line.split()
            word, pointers = fields[0], int(fields[3])
            counted, meaning = int(fields[5 + pointers]), meanings.get(fields[6 + pointers])
            if not counted or len(word) < 3 or not word.isalpha() or meaning is None:
                continue
            above = meanings.get(meaning.broader)
            others = [other for other in meaning.words if other != word][:MOST]
            others += [other for other in (above.words if above else []) if other not in (word, *others)][:MOST_BROADER]
            if others:
                found.setdefault(word, []).extend(others)
    return found


def _meanings(path: Path) -> Iterator[tuple[str, _Meaning]]:
    """(offset, meaning) of every line of a data file."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split(" ")
        count = int(fields[3], 16)
        words = [word for word in fields[4 : 4 + 2 * count : 2] if word.isalpha() and word.islower()]
        pointers = fields[5 + 2 * count :]
        symbols = pointers[0 : 4 * int(fields[4 + 2 * count]) : 4]
        broader = pointers[4 * symbols.index(_BROADER) + 1] if _BROADER in symbols else ""
        yield fields[0], _Meaning(words, broader)
