"""Facts in free wording: sentences written one by one, each with slots to fill and questions in other words.

Reads `assets/tales/*.txt`. A block is one fact: `F` lines say it in one or several ways, `Qn` lines ask for slot n. The
first F line defines the slots: `{1:town}` draws a value of that kind, `{2:red / blue / green}` one of the
alternatives, `{3:hid ~ conceal / lost ~ mislay}` one that questions put in other words: F lines say "hid", questions
"conceal". Everywhere else a slot is `{1}`.

`python -m salalocal.training.tales FILE...` checks files and shows what comes out of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from salalocal.training.lexicon import ASSETS, Lexicon, word_lists
from salalocal.training.relations import question_text
from salalocal.training.statements import Ask, Split, Statement, sentence, split_of

TALES = ASSETS / "tales"
ASKS_PER_TALE = 3
MASKED_SHARE = 0.35
"""Of the tales so many have some of their own words replaced by others."""
RETOLD_SHARE = 0.45
"""Of the tales so many are told again in the same text with other values: colliding keys."""

_NAMES = frozenset({"person", "name", "first", "last", "town", "country", "org", "work"})
"""Kinds of which a text may say one thing and be asked another."""
_OTHERWISE = " ~ "
_DEFINED = re.compile(r"\{(\d):([^{}]+)\}")
_LONG_WORD = re.compile(r"(?<!\{)\b[a-z]{5,}\b")
_STEM_LETTERS = 5
_SLOT = re.compile(r"\{(\d)\}")
_QUESTION = re.compile(r"Q(\d) (.+)")
_LOWERED = re.compile(
    "(who|whom|whose|what|which|where|when|why|how|in|on|at|by|to|from|for|of|with|under|after|before|until|since"
    "|name|tell|give|the|did|does|do|is|are|was|were|a|an)\\b",
    re.IGNORECASE,
)
"""Words that lose their capital where a question is put after an opening such as "Tell me:"."""


@dataclass(frozen=True)
class Tale:
    """One block. `kinds` are kinds of the lexicon or alternatives, by slot; `questions` (slot asked for, wording)."""

    name: str
    kinds: dict[str, str | tuple[str, ...]]
    wordings: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def parse_tales(text: str, source: str) -> list[Tale]:
    """The blocks of one file. Raises ValueError naming the block that is none."""
    tales = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if lines:
            tales.append(_parse_block(lines, source))
    return tales


def _parse_block(lines: Sequence[str], source: str) -> Tale:
    wordings = [line[2:].strip() for line in lines if line.startswith("F ")]
    asked = [(match[1], match[2]) for line in lines if (match := _QUESTION.fullmatch(line))]
    where = f"{source}: the block {lines[0][:60]!r}"
    if not wordings or not asked or len(wordings) + len(asked) != len(lines):
        raise ValueError(f"{where} is not F lines and Qn lines")
    kinds: dict[str, str | tuple[str, ...]] = {}
    known = Lexicon(np.random.default_rng(0)).kinds | word_lists().keys()
    for slot, spec in _DEFINED.findall(wordings[0]):
        options = tuple(option.strip() for option in spec.split(" / "))
        if slot in kinds:
            raise ValueError(f"{where} defines slot {slot} twice; write {{{slot}}} the second time")
        if len(options) == 1 and spec not in known:
            raise ValueError(f"{where}: {spec!r} is neither a kind nor alternatives with ' / ' between them")
        kinds[slot] = options if len(options) > 1 else spec
    wordings[0] = _DEFINED.sub(r"{\1}", wordings[0])
    for text in (*wordings, *(question for _, question in asked)):
        used = set(_SLOT.findall(text))
        if not used <= kinds.keys() or "{" in _SLOT.sub("", text) or "}" in _SLOT.sub("", text):
            raise ValueError(f"{where} has a slot that its first F line does not define, in {text[:60]!r}")
    for slot, question in asked:
        if slot in _SLOT.findall(question):
            raise ValueError(f"{where} gives slot {slot} away in {question!r}")
        if not any(f"{{{slot}}}" in wording for wording in wordings):
            raise ValueError(f"{where} asks for slot {slot}, which no F line has")
    return Tale(f"{source} {wordings[0]}", kinds, tuple(wordings), tuple(asked))


@cache
def tales(split: Split) -> tuple[Tale, ...]:
    """All tales of one split: a whole tale is trained on or never."""
    found = [tale for path in sorted(TALES.glob("*.txt")) for tale in parse_tales(path.read_text("utf-8"), path.stem)]
    return tuple(tale for tale in found if split_of("tale", tale.name) is split)


@dataclass(frozen=True)
class _Named:
    """A question with a name in it: the slot asked for, the wording, and the name's slot."""

    tale: Tale
    asked: str
    wording: str
    name: str


@cache
def _questions_with(kind: str, split: Split) -> tuple[_Named, ...]:
    """Every question of a split with a name of that kind."""
    return tuple(
        _Named(tale, asked, wording, slot)
        for tale in tales(split)
        for asked, wording in tale.questions
        for slot in dict.fromkeys(_SLOT.findall(wording))
        if tale.kinds[slot] == kind
    )


@dataclass(frozen=True)
class _Telling:
    """One tale in one wording with its values, and the slots that each of its questions names."""

    tale: Tale
    wording: str
    values: dict[str, str]
    questions: tuple[tuple[str, str], ...]

    def answers(self, other: _Telling) -> bool:
        """Whether a question of `other` could be answered, otherwise, from this telling."""
        return any(
            self.values[slot] != other.values[slot]
            and all(self.values[known] == other.values[known] for known in _SLOT.findall(question))
            for slot, question in other.questions
        )


class TaleScene:
    """Tales for one text; some are told twice with other values, so that a question needs all its words."""

    def __init__(self, lexicon: Lexicon, choice: Sequence[Tale]) -> None:
        self._lexicon = lexicon
        self._tales = choice
        self._told: dict[str, list[_Telling]] = {}

    def cells(self, count: int) -> list[Statement]:
        """At most `count` statements that answer none of each other's questions, nor of those made before."""
        lexicon = self._lexicon
        made: list[Statement] = []
        for _ in range(count if self._tales else 0):
            tale = self._tales[lexicon.between(0, len(self._tales) - 1)]
            for _ in range(2 if lexicon.flip(RETOLD_SHARE) else 1):
                statement = self._tell(tale)
                if statement is not None and len(made) < count:
                    made.append(statement)
        return made

    def borrowed(self, count: int, split: Split) -> list[Ask]:
        """At most `count` questions that other tales ask, about names of these: the text has the name, and not what is
        asked about it. None shares a longer word with the tale that its name is from."""
        lexicon = self._lexicon
        tellings = [telling for told in self._told.values() for telling in told]
        asks: list[Ask] = []
        for _ in range(count if tellings else 0):
            telling = tellings[lexicon.between(0, len(tellings) - 1)]
            tale = telling.tale
            said = ((slot, tale.kinds[slot]) for slot in dict.fromkeys(_SLOT.findall(telling.wording)))
            names = [(slot, kind) for slot, kind in said if isinstance(kind, str) and kind in _NAMES]
            if not names:
                continue
            known, kind = names[lexicon.between(0, len(names) - 1)]
            options = _questions_with(kind, split)
            other = options[lexicon.between(0, len(options) - 1)]
            own = (*tale.wordings, *(question for _, question in tale.questions))
            if other.tale.name in self._told or _stems(other.wording) & _stems(*own):
                continue
            values = _drawn(lexicon, other.tale) | {other.name: telling.values[known]}
            asks.append(_ask(lexicon, other.tale, other.asked, other.wording, values, ()))
        return asks

    def _tell(self, tale: Tale) -> Statement | None:
        lexicon, told = self._lexicon, self._told.setdefault(tale.name, [])
        values = _drawn(lexicon, tale)
        if told and lexicon.flip(0.5):
            # Half of the values stay, where that leaves the questions an answer.
            values |= {slot: old for slot, old in told[-1].values.items() if lexicon.flip(0.4)}
        wording = tale.wordings[lexicon.between(0, len(tale.wordings) - 1)]
        options = [question for question in tale.questions if f"{{{question[0]}}}" in wording]
        chosen = tuple(options[i] for i in lexicon.shuffled(len(options))[:ASKS_PER_TALE])
        telling = _Telling(tale, wording, values, chosen)
        if not chosen or any(old.answers(telling) or telling.answers(old) for old in told):
            return None
        told.append(telling)
        if lexicon.flip(MASKED_SHARE):
            wording, chosen = self._masked(wording, chosen)
        # What does not end as a sentence is a line of code, a list or a note, and stands as it was written.
        is_line = wording.rstrip("\"'”’)")[-1:] not in (".", "!", "?")
        text, spans = _render(wording, values, is_line)
        asks = [_ask(lexicon, tale, slot, question, values, (spans[slot],)) for slot, question in chosen]
        return Statement(text, tuple(asks), is_line)

    def _masked(self, wording: str, questions: tuple[tuple[str, str], ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Other words, drawn at random, for some of those that sentence and questions share: the question can then be
        matched by what stands in the text, and not by knowing the tale."""
        lexicon = self._lexicon
        asked = " ".join(question for _, question in questions)
        for word in sorted(set(_LONG_WORD.findall(wording)) & set(_LONG_WORD.findall(asked))):
            if lexicon.flip():
                other = lexicon.pick(
                    lexicon.word("object"), lexicon.word("book"), lexicon.word("topic"), lexicon.word("building"),
                    lexicon.word("adjective"), lexicon.word("codeverb"), lexicon.invented().lower(),
                )  # fmt: skip
                whole = re.compile(rf"\b{word}\b")
                wording = whole.sub(other, wording)
                questions = tuple((slot, whole.sub(other, question)) for slot, question in questions)
        return wording, questions


def _drawn(lexicon: Lexicon, tale: Tale) -> dict[str, str]:
    """A value for every slot."""
    return {
        slot: lexicon.value(kind) if isinstance(kind, str) else lexicon.pick(*kind) for slot, kind in tale.kinds.items()
    }


def _ask(
    lexicon: Lexicon, tale: Tale, slot: str, question: str, values: dict[str, str], spans: tuple[tuple[int, int], ...]
) -> Ask:
    """A question for `slot` with its other slots filled in."""
    core = _SLOT.sub(lambda match: values[match[1]].split(_OTHERWISE)[-1], question).rstrip("?")
    known = tuple(f"{number}={values[number]}" for number in sorted(set(_SLOT.findall(question))))
    if _LOWERED.match(core):
        core = core[0].lower() + core[1:]
    asked = question_text(lexicon, core) if lexicon.flip(0.35) else sentence(core, "?")
    return Ask(asked, spans, ("tale", tale.name, slot, *known), f"tale/{tale.name}")


def _stems(*texts: str) -> set[str]:
    return {word[:_STEM_LETTERS] for text in texts for word in _LONG_WORD.findall(text)}


def _render(wording: str, values: dict[str, str], is_line: bool) -> tuple[str, dict[str, tuple[int, int]]]:
    """The sentence, and the character span of the first mention of every slot."""
    text, spans, at = "", dict[str, tuple[int, int]](), 0
    for match in _SLOT.finditer(wording):
        text += wording[at : match.start()]
        value = values[match[1]].split(_OTHERWISE)[0]
        spans.setdefault(match[1], (len(text), len(text) + len(value)))
        text += value
        at = match.end()
    text += wording[at:]
    return (text if is_line else sentence(text)), spans


def main() -> int:
    """Check the files named, or all that ship; print some tellings."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(TALES.glob("*.txt"))
    status = 0
    for path in paths:
        try:
            found = parse_tales(path.read_text("utf-8"), path.stem)
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            status = 1
            continue
        questions = sum(len(tale.questions) for tale in found)
        sys.stdout.write(f"{path.name}: {len(found)} facts, {questions} questions\n")
        for statement in TaleScene(Lexicon(np.random.default_rng()), found).cells(5):
            sys.stdout.write(f"  {statement.text}\n")
            for ask in statement.asks:
                low, high = ask.spans[0]
                sys.stdout.write(f"      {ask.question}  ->  {statement.text[low:high]}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
