"""Facts of the form "someone did something to something, somewhere, at some time": one statement, many questions.

Verbs come from `assets/verbs.txt` in groups of one meaning, so a question may use another verb than the statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from salalocal.training.lexicon import ASSETS, Lexicon
from salalocal.training.relations import question_text
from salalocal.training.statements import Ask, Split, Statement, sentence, split_of

_STATEMENTS = (
    "{s} {past} {o}{where}{when}{with}{why}", "{when_first}{s} {past} {o}{where}{with}{why}",
    "{o} was {pp} by {s}{where}{when}{why}", "it was {s} who {past} {o}{where}{when}",
    "{where_first}{s} {past} {o}{when}{with}", "{s} has {pp} {o}{where}{with}",
    "the one who {past} {o}{where} was {s}", "together with {w}, {s} {past} {o}{where}{when}",
    "{when_first}{o} was {pp} by {s}{where}", "{s}, who lived nearby, {past} {o}{where}{when}",
)  # fmt: skip
_QUESTIONS = {
    "s": (
        "who {past} {o}", "who was it that {past} {o}", "by whom was {o} {pp}", "which person {past} {o}",
        "name the person who {past} {o}", "{o} was {pp} by whom", "who {past} {o}{where}", "who has {pp} {o}",
        "tell me who {past} {o}", "whose doing was it that {o} was {pp}",
    ),
    "o": (
        "what did {s} {base}", "what was {pp} by {s}", "{s} {past} what", "what did {s} {base}{where}",
        "what has {s} {pp}", "tell me what {s} {past}", "what was it that {s} {past}", "what did {s} {base}{when}",
    ),
    "where": (
        "where did {s} {base} {o}", "where was {o} {pp}", "in which place was {o} {pp}",
        "where was it that {s} {past} {o}",
        "in what place did {s} {base} {o}", "{s} {past} {o} where", "tell me where {o} was {pp}",
    ),
    "when": (
        "when did {s} {base} {o}", "when was {o} {pp}", "at what time was {o} {pp}", "when was it that {s} {past} {o}",
        "tell me when {s} {past} {o}", "{o} was {pp} when",
    ),
    "w": (
        "with whom did {s} {base} {o}", "who helped {s} when {o} was {pp}", "who was with {s} when {o} was {pp}",
        "together with whom did {s} {base} {o}", "who did {s} {base} {o} with",
    ),
    "why": (
        "why did {s} {base} {o}", "why was {o} {pp}", "for what reason did {s} {base} {o}", "what made {s} {base} {o}",
        "what was the reason why {o} was {pp}",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """One spelling of an action."""

    base: str
    past: str
    participle: str


@cache
def verb_groups() -> tuple[tuple[tuple[Verb, ...], str], ...]:
    """(verbs of one meaning, kind of their object) for every line of `verbs.txt`."""
    groups = []
    for line in (ASSETS / "verbs.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            verbs, kind = line.split(" : ")
            forms = [verb.replace("_", " ").split("/") for verb in verbs.split()]
            groups.append((tuple(Verb(*form) for form in forms), kind))
    return tuple(groups)


class EventScene:
    """Events that share persons, objects and places, so that a question needs all its words."""

    def __init__(self, lexicon: Lexicon, split: Split, count: int) -> None:
        self._lexicon = lexicon
        self._split = split
        self._count = count
        # A line of verbs is one meaning; UNSEEN scenes use any verb, with wordings that are held out.
        self._groups = [
            g for g in verb_groups() if split is Split.UNSEEN or split_of("verb", g[0][0].base, g[1]) is Split.TRAINED
        ]
        self._persons = [lexicon.person() for _ in range(max(2, count))]

    def cells(self) -> list[Statement]:
        """`count` events with different (verb, object) pairs; the caller plants some and asks about all."""
        lexicon = self._lexicon
        made: list[Statement] = []
        groups = [self._groups[lexicon.between(0, len(self._groups) - 1)] for _ in range(max(1, self._count // 3))]
        objects: dict[str, list[str]] = {}
        seen = set()
        for _ in range(self._count):
            verbs, kind = groups[lexicon.between(0, len(groups) - 1)]
            pool = objects.setdefault(kind, [lexicon.subject(kind) for _ in range(max(2, self._count // 2))])
            subject, target = lexicon.pick(*self._persons), lexicon.pick(*pool)
            key = (verbs[0].base, target)
            if subject != target and key not in seen and (verbs[0].base, subject) not in seen:
                seen |= {key, (verbs[0].base, subject)}
                statement = self._state(verbs, subject, target)
                if statement is not None:
                    made.append(statement)
        return made

    def _allowed(self, statement: int, role: str, question: int, verbs: tuple[Verb, ...]) -> bool:
        parts = (
            split_of("verb", verbs[0].base),
            split_of("event", "F", str(statement)),
            split_of("event", "Q", role, str(question)),
        )
        return (Split.UNSEEN in parts) is (self._split is Split.UNSEEN)

    def _state(self, verbs: tuple[Verb, ...], subject: str, target: str) -> Statement | None:
        lexicon = self._lexicon
        index = lexicon.between(0, len(_STATEMENTS) - 1)
        pattern = _STATEMENTS[index]
        place = lexicon.flip()
        values = {
            "s": subject,
            "o": target,
            "where": (lexicon.town() if place else lexicon.value("spot")),
            "when": lexicon.pick(lexicon.date(), lexicon.value("year"), lexicon.time(), lexicon.word("weekday")),
            "w": lexicon.person(),
            "why": lexicon.value("reason"),
        }
        lead = {"where": "in " if place else "", "when": _time_lead(values["when"])}
        verb = verbs[lexicon.between(0, len(verbs) - 1)]
        text, spans = _render(lexicon, pattern, values, lead, verb)
        asks = []
        options = [
            (role, number)
            for role, questions in _QUESTIONS.items()
            if role in spans
            for number in range(len(questions))
            if self._allowed(index, role, number, verbs)
        ]
        for _ in range(min(3, len(options))):
            role, number = options[lexicon.between(0, len(options) - 1)]
            asked = verbs[lexicon.between(0, len(verbs) - 1)]
            core = _QUESTIONS[role][number]
            for slot in ("where", "when"):
                phrase = f" {lead[slot]}{values[slot]}" if slot in spans else ""
                core = core.replace(f"{{{slot}}}", phrase)
            core = core.replace("{s}", subject).replace("{o}", target)
            core = core.replace("{past}", asked.past).replace("{pp}", asked.participle).replace("{base}", asked.base)
            known = target if role != "o" else subject
            asks.append(
                Ask(
                    question_text(lexicon, core),
                    (spans[role],),
                    ("event", verbs[0].base, role, known.lower()),
                    f"event/F{index}/{role}/{number}",
                )
            )
        return Statement(text, tuple(asks)) if asks else None


def _time_lead(when: str) -> str:
    if when.isdigit():
        return "in "
    if ":" in when or "o'clock" in when or when in ("noon", "midnight", "sunrise", "dusk") or when.startswith("half"):
        return "at "
    return "on "


def _render(
    lexicon: Lexicon, pattern: str, values: dict[str, str], lead: dict[str, str], verb: Verb
) -> tuple[str, dict[str, tuple[int, int]]]:
    """The sentence and the character span of every value in it; optional parts come and go."""
    parts: list[tuple[str, str | None]] = []
    rest = pattern
    while "{" in rest:
        before, _, rest = rest.partition("{")
        slot, _, rest = rest.partition("}")
        parts.append((before, None))
        name = slot.removesuffix("_first")
        if slot == "past":
            parts.append((verb.past, None))
        elif slot == "pp":
            parts.append((verb.participle, None))
        elif slot in ("s", "o", "w"):
            parts.append((values[slot], slot))
        elif slot.endswith("_first"):
            parts += [(lead[name], None), (values[name], name), (", ", None)]
        elif lexicon.flip(0.6):
            if slot == "with":
                parts += [(" with ", None), (values["w"], "w")]
            else:
                parts += [(f" {lead.get(slot, '')}", None), (values[slot], slot)]
    parts.append((rest, None))
    text, spans = "", dict[str, tuple[int, int]]()
    for piece, name_or_none in parts:
        if name_or_none is not None:
            spans[name_or_none] = (len(text), len(text) + len(piece))
        text += piece
    return sentence(text), spans
