"""Questions about any sentence of the corpus: a span of it is the answer, the other words, changed, are the question.

No two of them are alike, so nothing can be learnt by heart: what is left to learn is to find the sentence by words
that it shares with the question, also where some are missing, in another order, in another form or replaced by a
synonym, and to tell which of its words the question lacks. Knows words and offsets; tokens are the caller's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from salalocal.training.lexicon import Lexicon
from salalocal.training.passages import ABBREVIATION
from salalocal.training.rewording import Rewording

SYNONYM_SHARE = 0.25
INFLECT_SHARE = 0.35
LONGEST_ANSWER_WORDS = 9
_SENTENCE = re.compile(r"(?<![\w.])[A-Z][^\n.!?]{28,260}?(?:\.(?=\w)[^\n.!?]{0,80})*[.!?](?=[\s\"')]|$)")
_BREAK = re.compile(r"[,;:()\"“”]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_'’-]*(?:[.,:]\d+)*%?")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """the a an of in on at to from by with for and or but nor so as than that this these those it its he she they
        them his her their him i me my we our us you your is are was were be been being am do does did has have had
        will would can could may might must should shall not no if when while where which who whom whose what how why
        there here then also very more most such any some each every all both either into onto upon over under about
        after before between through during without within against among because until unless although though since""",
    )
)
_PREPOSITIONS = {
    "in": ("where", "in what", "when"), "on": ("where", "on what", "when"), "at": ("where", "at what", "when"),
    "from": ("from where", "from what", "from whom"), "to": ("to what", "where", "to whom"),
    "by": ("by what", "by whom", "how"), "with": ("with what", "with whom", "how"), "for": ("for what", "for whom"),
    "under": ("where", "under what"), "after": ("when", "after what"), "before": ("when", "before what"),
    "during": ("when", "during what"), "into": ("into what", "where"), "without": ("without what", "how"),
    "between": ("between what", "where"), "through": ("through what", "how"), "about": ("about what", "of what"),
    "against": ("against what", "against whom"), "until": ("until when", "how long"), "since": ("since when",),
}  # fmt: skip
_NUMBERS = re.compile(
    r"\d|(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+ty|\w+teen|hundred|thousand)$"
)
_CLAUSES = {"because": "why", "if": "on what condition", "when": "when", "while": "when", "so": "to what end"}


@dataclass(frozen=True)
class Cloze:
    """A question, and the characters [start, end) of the text that answer it."""

    question: str
    start: int
    end: int


@dataclass(frozen=True)
class _Span:
    """Words [low, high) of a sentence that are the answer, and what asks for it."""

    low: int
    high: int
    asked_by: str


class ClozeMaker:
    """Makes questions about one text.

    Args:
        lexicon: where everything is drawn from.
        synonyms: word -> words of the same meaning.
        text: the text; sentences with U+FFFD are left out.
    """

    def __init__(self, lexicon: Lexicon, synonyms: Mapping[str, list[str]], text: str) -> None:
        self._lexicon, self._text = lexicon, text
        self._rewording = Rewording(lexicon, synonyms)
        self._sentences = list(_SENTENCE.finditer(text))
        self._counts = Counter(word.lower() for word in _WORD.findall(text))

    def draw(self, count: int) -> list[Cloze]:
        """At most `count` questions about different sentences."""
        made: list[Cloze] = []
        for index in self._lexicon.shuffled(len(self._sentences)):
            if len(made) == count:
                break
            cloze = self._about(self._sentences[index])
            if cloze is not None:
                made.append(cloze)
        return made

    def _about(self, sentence: re.Match[str]) -> Cloze | None:
        words = list(_WORD.finditer(sentence[0]))
        if not 6 <= len(words) <= 45 or "\ufffd" in sentence[0] or ABBREVIATION.search(sentence[0]):
            return None
        spans = list(self._spans(sentence[0], words))
        if not spans:
            return None
        span = spans[self._lexicon.between(0, len(spans) - 1)]
        kept = self._kept(words, span)
        anchors = [word for word in (*kept[0], *kept[1]) if self._counts[word.lower()] <= 2 and len(word) > 3]
        if len(anchors) < 2 or len(kept[0]) + len(kept[1]) < 3:
            return None
        start = sentence.start()
        return Cloze(
            self._worded(span.asked_by, *map(self._changed, kept)),
            start + words[span.low].start(),
            start + words[span.high - 1].end(),
        )

    def _spans(self, sentence: str, words: list[re.Match[str]]) -> list[_Span]:
        """Noun phrases, numbers, phrases with a preposition and clauses that could be asked for."""
        found = []
        lower = [word[0].lower() for word in words]

        def unbroken(low: int, high: int) -> bool:
            inside = re.sub(r"\d[,.:]\d", "", sentence[words[low].start() : words[high - 1].end()])
            return high - low <= LONGEST_ANSWER_WORDS and not _BREAK.search(inside)

        at = 0
        while at < len(words):
            if lower[at] in _FUNCTION_WORDS:
                if (asked := _CLAUSES.get(lower[at])) and at + 3 < len(words):
                    high = at + 2
                    while high < len(words) and "," not in sentence[words[high - 1].end() : words[high].start()]:
                        high += 1
                    low = at + (lower[at] != "because")
                    if unbroken(low, high):
                        found.append(_Span(low, high, asked))
                at += 1
                continue
            high = at + 1
            while high < len(words) and lower[high] not in _FUNCTION_WORDS and unbroken(at, high + 1):
                high += 1
            # "the lid of the box" is one phrase, at times.
            if high + 1 < len(words) and lower[high] == "of" and self._lexicon.flip(0.4):
                far = high + 1 + (lower[high + 1] in ("the", "a", "an", "his", "her", "its"))
                while far < len(words) and lower[far] not in _FUNCTION_WORDS and unbroken(at, far + 1):
                    far += 1
                    high = far
            low = at
            if at and lower[at - 1] in ("the", "a", "an", "his", "her", "its", "their", "our", "my"):
                low -= self._lexicon.flip(0.75)
            # A lone word without an article or preposition before it may be anything, a verb too.
            is_bare = high - low == 1 and words[low][0].islower() and lower[low - 1] not in _PREPOSITIONS
            if high - low <= 7 and unbroken(low, high) and not is_bare:
                found.append(_Span(low, high, self._noun_word(words[at][0], at, high, lower[high - 1])))
                before = lower[low - 1] if low else ""
                if before in _PREPOSITIONS and unbroken(low - 1, high):
                    found.append(_Span(low - 1, high, self._lexicon.pick(*_PREPOSITIONS[before])))
            at = high
        return found

    def _noun_word(self, first: str, at: int, high: int, noun: str) -> str:
        """What asks for the noun phrase of words [at, high) that begins with `first` and ends with `noun`."""
        lexicon = self._lexicon
        if _NUMBERS.match(first.lower()):
            noun = noun if high - at > 1 else ""
            return lexicon.pick(f"how many {noun}".strip(), "how much", "what number", "how many", "when", "which")
        if first[0].isupper() and at:
            return lexicon.pick("who", "what", "which", "whom", "where", "what name", "who")
        which = f"which {noun}" if high - at > 1 else "what"
        return lexicon.pick("what", "what", "what", which, "who", "what kind of")

    def _kept(self, words: list[re.Match[str]], span: _Span) -> tuple[list[str], list[str]]:
        """Words before and after the answer that the question has."""
        reach = self._lexicon.between(5, 14)
        drop = 0.15 * self._lexicon.between(0, 2)

        def keep(low: int, high: int) -> list[str]:
            part = [word[0] for word in words[low:high]]
            odds = [drop * (1.6 if word.lower() in _FUNCTION_WORDS else 0.7) for word in part]
            return [word for word, chance in zip(part, odds, strict=True) if not self._lexicon.flip(chance)]

        before = keep(max(0, span.low - reach), span.low)
        return before, keep(span.high, min(len(words), span.high + reach))

    def _changed(self, words: list[str]) -> list[str]:
        """The words with some of them in another form, or others of the same meaning."""
        return [self._rewording.word(word, SYNONYM_SHARE, INFLECT_SHARE) for word in words]

    def _worded(self, asked_by: str, before: list[str], after: list[str]) -> str:
        lexicon = self._lexicon
        if before and not before[0][:2].isupper() and before[0][0].isupper() and before[0].lower() in _FUNCTION_WORDS:
            before = [before[0].lower(), *before[1:]]
        helper = [lexicon.pick("did", "does", "is", "was", "do", "are")] if lexicon.flip(0.4) else []
        match lexicon.between(0, 9):
            case 0 | 1 | 2:
                words = [*before, asked_by, *after]
            case 3 | 4 | 5 | 6:
                words = [asked_by, *helper, *before, *after]
            case 7 | 8:
                words = [asked_by, *helper, *after, *before]
            case _:
                words = [*before, "...", *after]
        return " ".join(words)
