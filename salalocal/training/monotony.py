"""Filler that repeats itself: a few sentences of a real text, said again and again with other names, words and numbers.

Records, chronicles and logs read like that. A long one holds every pattern of its own hundreds of times, full of names
that no question asks for; a model that has only seen prose takes them for answers.
"""

from __future__ import annotations

import re

from salalocal.training.lexicon import Lexicon

MIN_PATTERNS = 6
_SENTENCE = re.compile(r"[A-Z][^.!?\n]{25,180}[.!?](?=\s|$)")
_WORD = re.compile(r"[A-Za-z]+|\d+")
_SUBJECTS = frozenset(["He", "She", "They", "We", "You", "It", "I", "he", "she", "they", "we", "you", "who"])
_RENAMED_SHARE = 0.6
"""Of the pronouns so many become names."""
_OTHER_WORDS_SHARE = 0.35
"""Of the longer words of a sentence so many change from one time to the next."""
_NEW_NAME_SHARE = 0.06
_LINE_SHARE = 0.3
"""Of the texts so many have every sentence on a line of its own."""
_SLOT = re.compile(r"\{(name|word|number)\}")


class Monotony:
    """Endless text made of the sentences of `text`; `patterns` is empty when it has too few.

    Args:
        lexicon: draws everything.
        text: prose to take sentences and words from.
    """

    def __init__(self, lexicon: Lexicon, text: str) -> None:
        self._lexicon = lexicon
        sentences = [match[0] for match in _SENTENCE.finditer(text)]
        kept = sorted(lexicon.shuffled(len(sentences))[: lexicon.between(MIN_PATTERNS, 40)])
        self._words = sorted({word for word in _WORD.findall(text) if word.islower() and len(word) > 4})
        enough = len(kept) >= MIN_PATTERNS and self._words
        self.patterns = [self._pattern(sentences[index]) for index in kept] if enough else []
        self._names = [self._name() for _ in range(lexicon.between(3, 24))]
        self._by_line = lexicon.flip(_LINE_SHARE)

    def _name(self) -> str:
        lexicon = self._lexicon
        return lexicon.invented() if lexicon.flip() else lexicon.town() if lexicon.flip(0.4) else lexicon.person()

    def _pattern(self, sentence: str) -> str:
        def slot(match: re.Match[str]) -> str:
            word = match[0]
            if word.isdigit():
                return "{number}"
            if word in _SUBJECTS:
                return "{name}" if self._lexicon.flip(_RENAMED_SHARE) else word
            if word[0].isupper():
                return "{name}" if match.start() and len(word) > 2 else word
            return "{word}" if len(word) > 4 and self._lexicon.flip(_OTHER_WORDS_SHARE) else word

        return _WORD.sub(slot, sentence.replace("{", "(").replace("}", ")"))

    def text(self, characters: int) -> str:
        """At least so many characters."""
        lexicon = self._lexicon
        parts: list[str] = []
        size = 0
        while size < characters:
            if lexicon.flip(_NEW_NAME_SHARE):
                self._names[lexicon.between(0, len(self._names) - 1)] = self._name()
            parts.append(_SLOT.sub(self._filled, lexicon.pick(*self.patterns)))
            parts.append("\n" if self._by_line else "\n\n" if lexicon.flip(0.18) else " ")
            size += len(parts[-2]) + 1
        return "".join(parts)

    def _filled(self, slot: re.Match[str]) -> str:
        lexicon = self._lexicon
        if slot[1] == "name":
            return lexicon.pick(*self._names)
        return lexicon.pick(*self._words) if slot[1] == "word" else str(lexicon.between(2, 90))
