"""Puts questions otherwise, word by word: synonyms, broader words, other forms. Knows words, not what is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from salalocal.training.events import verb_groups
from salalocal.training.lexicon import Lexicon, word_lists

_ENDING = re.compile(r"(?:ied|ed|es|s|ing)$")
_LOWER_WORD = re.compile(r"(?<![\w.'’/-])[a-z]{3,}(?![\w'’/(-]|\.\w)")
_ASKING = frozenset(
    re.findall(
        r"\w+",
        """who whom whose what which where when why how the and are was were did does has have had for from with that
        this not will would can could may must shall should you your its his her their there any some tell give name""",
    )
)


@cache
def _base_forms() -> Mapping[str, str]:
    """Inflected verb -> its base, from the word lists."""
    pairs = [pair.split(":") for name in ("third person", "past tense") for pair in word_lists()[name]]
    forms = {inflected: base for inflected, base in pairs if inflected != base}
    for verbs, _ in verb_groups():
        forms |= {form: verb.base for verb in verbs for form in (verb.past, verb.participle)}
    return forms


class Rewording:
    """Draws other words.

    Args:
        lexicon: where everything is drawn from.
        synonyms: word -> words that may take its place.
    """

    def __init__(self, lexicon: Lexicon, synonyms: Mapping[str, list[str]]) -> None:
        self._lexicon, self._synonyms = lexicon, synonyms

    def word(self, word: str, synonym_share: float, inflect_share: float) -> str:
        """The word, another of its meaning, or another form of it, with these chances."""
        lexicon, lower = self._lexicon, word.lower()
        if (others := self._others(lower)) and lexicon.flip(synonym_share):
            return lexicon.pick(*others)
        if (base := self._base(lower)) is not None and lexicon.flip(inflect_share):
            return base
        return word

    def question(self, question: str, synonym_share: float) -> str:
        """The question with other words for some of its lower-case ones; names, codes and question words stay."""

        def other(match: re.Match[str]) -> str:
            return match[0] if match[0] in _ASKING else self.word(match[0], synonym_share, 0.0)

        return _LOWER_WORD.sub(other, question)

    def _others(self, lower: str) -> list[str]:
        found = self._synonyms.get(lower)
        if found is None and (base := self._base(lower)) is not None:
            found = self._synonyms.get(base)
        return found or []

    def _base(self, lower: str) -> str | None:
        """The form without an ending; None for a word that seems to have none."""
        if lower in _base_forms():
            return _base_forms()[lower]
        if len(lower) > 5 and (match := _ENDING.search(lower)):
            stem = lower[: match.start()] + ("y" if match[0] == "ied" else "")
            return stem if match[0] == "s" or stem in self._synonyms or f"{stem}e" not in self._synonyms else f"{stem}e"
        return None
