"""Words of the same meaning, from WordNet's files: for each word those of its commonest sense. Knows no sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

MOST = 4
"""Words of one meaning that are kept; WordNet names the commoner ones first."""
_PARTS = ("noun", "verb", "adj", "adv")


def read_synonyms(folder: Path) -> dict[str, list[str]]:
    """Single word -> single words that share its most frequent sense; `folder` holds `index.*` and `data.*`.

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
            counted, offset = int(fields[5 + pointers]), fields[6 + pointers]
            others = [other for other in meanings.get(offset, []) if other != word]
            if counted and len(word) > 2 and word.isalpha() and others:
                found.setdefault(word, []).extend(others[:MOST])
    return found


def _meanings(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(offset, plain lower-case words) of every meaning in a data file."""
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split(" ", 4)
            words = fields[4].split(" ")[: 2 * int(fields[3], 16) : 2]
            yield fields[0], [word for word in words if word.isalpha() and word.islower()]
