"""Facts of the form "relation of a subject is a value", in the wordings of `assets/relations.txt`.

One scene puts several relations of several subjects side by side, so that neither name nor relation alone finds the
answer, and asks about combinations that the scene leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from salalocal.training.lexicon import ASSETS, Lexicon
from salalocal.training.statements import Ask, Split, Statement, sentence, split_of

_GENERIC_STATEMENTS = (
    "the {a} of {x} is {v}", "{x} has the {a} {v}", "remember that the {a} of {x} is {v}", "{x}: {a} {v}",
    "{x's} {a} was recorded as {v}", "for {x}, the {a} is {v}", "the {a} for {x} must be {v}",
    "as for {x}, its {a} is {v}", "{v} is the {a} of {x}", "they set the {a} of {x} to {v}",
)  # fmt: skip
_GENERIC_QUESTIONS = (
    "what is the {a} of {x}", "what is {x's} {a}", "tell me the {a} for {x}", "which {a} does {x} have",
    "the {a} of {x}", "what {a} was recorded for {x}", "do you know the {a} of {x}", "{x}: what is the {a}",
    "what was the {a} of {x} set to", "give me {x's} {a}",
)  # fmt: skip
_GENERIC_ATTRIBUTES = (
    "serial number", "height", "weight", "price", "owner", "nickname", "colour", "temperature", "room number",
    "badge number", "locker", "account number", "postal code", "speed limit", "leader", "mascot",
    "licence number", "order number", "score", "rank", "age", "salary", "rent", "deadline", "target",
    "destination", "favourite animal", "favourite tool", "home town", "client", "supplier", "model number",
    "area", "depth", "length", "ticket price", "batch number", "security level", "seat", "shelf", "crate",
    "invoice total", "member count", "starting point", "final stop", "best friend", "symbol", "reward",
    "status", "priority", "address", "sponsor", "weak point", "secret ingredient", "call sign", "frequency",
    "inventor", "capacity", "shoe size", "blood type", "star sign", "middle name", "wingspan", "cost centre",
    "project number", "lucky number", "code word",
)  # fmt: skip
_GENERIC_VALUES = ("number", "code", "person", "town", "thing", "colour", "date", "material", "animal", "goods", "year")
_SUBJECT_KINDS = ("person", "place", "building", "org", "thing", "vehicle", "project", "event", "work", "machine")


@dataclass(frozen=True)
class Relation:
    """One block of `relations.txt`; with `is_mixed` the n-th question belongs to the n-th statement alone."""

    subject_kind: str
    value_kind: str
    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    is_mixed: bool

    @property
    def identity(self) -> str:
        """The name that marks it among all relations."""
        return f"{self.subject_kind} {self.value_kind} {self.name}"

    def pairs(self, split: Split) -> tuple[tuple[int, int], ...]:
        """(statement, question) index pairs of this split. A whole relation may be UNSEEN."""
        return self._pairs[split]

    @cached_property
    def _pairs(self) -> dict[Split, tuple[tuple[int, int], ...]]:
        name = self.identity
        is_known = split_of(name) is Split.TRAINED
        statements = [split_of(name, "F", str(n)) is Split.TRAINED for n in range(len(self.statements))]
        questions = [split_of(name, "Q", str(n)) is Split.TRAINED for n in range(len(self.questions))]
        pairs: dict[Split, list[tuple[int, int]]] = {split: [] for split in Split}
        for s, statement in enumerate(statements):
            for q, question in enumerate(questions):
                if not self.is_mixed or s == q:
                    trained = is_known and statement and question
                    pairs[Split.TRAINED if trained else Split.UNSEEN].append((s, q))
        return {split: tuple(found) for split, found in pairs.items()}


@cache
def relations() -> tuple[Relation, ...]:
    """All blocks of `relations.txt`. Raises ValueError naming a block that is not three lines long."""
    found = []
    for block in (ASSETS / "relations.txt").read_text("utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if not lines:
            continue
        if len(lines) != 3 or lines[1][:2] != "F " or lines[2][:2] != "Q ":
            raise ValueError(f"relations.txt: the block {lines[0]!r} is not a header, an F line and a Q line")
        is_mixed = lines[0].startswith("! ")
        subject, value, name = lines[0].removeprefix("! ").split(" ", 2)
        found.append(
            Relation(subject, value, name, tuple(lines[1][2:].split(" | ")), tuple(lines[2][2:].split(" | ")), is_mixed)
        )
    return tuple(found)


def generic(lexicon: Lexicon) -> Relation:
    """A relation with an attribute drawn at random, half of the time one that no list holds."""
    attribute = lexicon.pick(*_GENERIC_ATTRIBUTES)
    if lexicon.flip(0.4):
        attribute = (
            f"{lexicon.pick(lexicon.word('topic'), lexicon.invented().lower())} {lexicon.pick(*_GENERIC_ATTRIBUTES)}"
        )

    def fill(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text.replace("{a}", attribute) for text in texts)

    return Relation(
        lexicon.pick(*_SUBJECT_KINDS),
        lexicon.pick(*_GENERIC_VALUES),
        attribute,
        fill(_GENERIC_STATEMENTS),
        fill(_GENERIC_QUESTIONS),
        is_mixed=False,
    )


class RelationScene:
    """Statements of some relations about some subjects of one kind, and the questions about them."""

    def __init__(self, lexicon: Lexicon, split: Split, subjects: int, relation_count: int) -> None:
        self._lexicon = lexicon
        self._split = split
        first = self._draw(None)
        self._relations = [first, *(self._draw(first.subject_kind) for _ in range(relation_count - 1))]
        seeds = [lexicon.subject(first.subject_kind) for _ in range(subjects)]
        # Half of the subjects borrow a word from another one: colliding keys.
        self._subjects = list(dict.fromkeys(s if lexicon.flip() else _blend(lexicon, s, seeds) for s in seeds))

    def _draw(self, subject_kind: str | None) -> Relation:
        if self._split is Split.TRAINED and self._lexicon.flip(0.2):
            relation = generic(self._lexicon)
            if subject_kind in (None, relation.subject_kind) and relation.pairs(self._split):
                return relation
        known = [r for r in relations() if subject_kind in (None, r.subject_kind) and r.pairs(self._split)] or [
            r for r in relations() if r.pairs(self._split)
        ]
        return known[self._lexicon.between(0, len(known) - 1)]

    def cells(self) -> list[Statement]:
        """One statement for every (relation, subject) that makes sense; the caller plants some and asks about all."""
        made, seen = [], set()
        for relation in self._relations:
            for subject in self._subjects:
                if relation.subject_kind == self._relations[0].subject_kind:
                    statement = self._state(relation, subject)
                    if statement.asks[0].key not in seen:
                        seen.add(statement.asks[0].key)
                        made.append(statement)
        return made

    def _state(self, relation: Relation, subject: str) -> Statement:
        lexicon = self._lexicon
        pairs = relation.pairs(self._split)
        s, q = pairs[lexicon.between(0, len(pairs) - 1)]
        pattern = relation.statements[s]
        plural = "{v+}" in pattern
        value = lexicon.value(relation.value_kind)
        if plural and relation.value_kind == "thing":
            value = f"{lexicon.word('adjective')} {lexicon.word('object')}s".replace("xs", "xes")
        filled = fill(pattern, subject)
        if lexicon.flip(0.18):
            lead = lexicon.word("prefix")
            filled = f"{lead} {filled}"
        head, tail = filled.split("{v+}" if plural else "{v}", 1)
        if not tail and lexicon.flip(0.1):
            tail = lexicon.word("suffix")
            tail = tail if tail.startswith(",") else f", {tail}"
        text = sentence(f"{head}{value}{tail}")
        start = len(head)
        name = f"{relation.identity}/{s if relation.is_mixed else ''}"
        ask = Ask(
            question_text(lexicon, fill(relation.questions[q], subject)),
            ((start, start + len(value)),),
            (name, subject.lower()),
            f"{relation.identity}/F{s}/Q{q}",
        )
        return Statement(text, (ask,))


def fill(pattern: str, subject: str) -> str:
    """The pattern with its subject; {it} is a small thing to hide."""
    possessive = subject + ("'" if subject.endswith("s") else "'s")
    return pattern.replace("{x's}", possessive).replace("{x}", subject).replace("{it}", "the map")


def question_text(lexicon: Lexicon, core: str) -> str:
    """The question with capitals, mark and, at times, an opening; `core` is its lower-case form."""
    shape = lexicon.between(0, 99)
    if shape < 62:
        return sentence(core, "?")
    if shape < 86:
        return f"{lexicon.word('asking')} {core}?"
    if shape < 93:
        return core
    return sentence(core, "?") if shape < 97 else f"{core}?"


def _blend(lexicon: Lexicon, subject: str, others: list[str]) -> str:
    """`subject` with one word of another subject in place of its own at the same position."""
    words, other = subject.split(" "), lexicon.pick(*others).split(" ")
    if len(words) < 2 or len(other) != len(words):
        return subject
    at = lexicon.between(0, len(words) - 1)
    words[at] = other[at]
    return " ".join(words)
