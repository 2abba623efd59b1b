"""Words and values for generated facts: people, places, things, numbers, dates, codes, invented names.

Reads `assets/words.txt`. Everything is drawn from the caller's random generator; a draw knows nothing of sentences.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent / "assets"

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
INVENTED_SHARE = 0.3
"""Share of names that are no dictionary's, so that looking them up is the only way to know them."""


@cache
def word_lists() -> dict[str, tuple[str, ...]]:
    """The lists of `words.txt` by name; entries with commas use `|` between them."""
    lists: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in (ASSETS / "words.txt").read_text("utf-8").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
        elif line and not line.startswith("#"):
            lists[name] = tuple(entry.strip(" ") for entry in line.split(" | " if " | " in line else ", "))
    return lists


class Lexicon:
    """Draws words and values; every method returns text as it stands in the middle of a sentence."""

    def __init__(self, rng: np.random.Generator) -> None:
        # The standard library's generator draws single numbers ten times as fast as numpy's.
        self._random = random.Random(int(rng.integers(1 << 62)))
        self._values: dict[str, Callable[[], str]] = {
            "person": self.person,
            "town": self.town,
            "place": self.town,
            "year": lambda: str(self.between(1210, 2049)),
            "count": lambda: str(self.between(2, 10 ** self.between(1, 4))),
            "number": self.number,
            "money": self.money,
            "length": lambda: f"{self.amount()} {self.pick('metres', 'kilometres', 'miles', 'feet', 'yards')}",
            "weight": lambda: f"{self.amount()} {self.pick('kilograms', 'grams', 'pounds', 'tons', 'ounces')}",
            "temp": lambda: f"{self.between(2, 480)} degrees",
            "duration": self.duration,
            "date": self.date,
            "time": self.time,
            "code": self.code,
            "serial": self.code,
            "phone": lambda: "-".join(str(self.between(100, 9999)) for _ in range(self.between(2, 3))),
            "email": lambda: f"{self.invented().lower()}@{self.invented().lower()}.{self.pick('org', 'net', 'com')}",
            "room": lambda: (
                f"{self.pick('room', 'office', 'hall', 'lab')} {self.pick('', *_LETTERS)}{self.between(1, 499)}"
            ),
            "ip": lambda: ".".join(str(self.between(1, 254)) for _ in range(4)),
            "version": lambda: f"{self.between(0, 30)}.{self.between(0, 20)}.{self.between(0, 40)}",
            "file": self.file,
            "thing": lambda: self.a(self.object_noun()),
            "animal": lambda: self.a(f"{self.word('adjective')} {self.word('animal')}"),
            "event": lambda: f"the {self.event_noun()}",
            "org": self.org,
            "work": self.work,
            "name": lambda: self.word("petname") if self.flip() else self.invented(),
            "nature": self.nature,
            "vehicle": lambda: self.a(f"{self.word('adjective')} {self.word('vehicle')}"),
            "spot": lambda: f"{self.word('preposition')} {self.object_noun()}",
            "reason": lambda: f"because {self.word('reason')}",
            "word": lambda: self.word("motto"),
        }

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of `value` that are generated; besides them every list of `words.txt` is one."""
        return frozenset(self._values)

    def between(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return self._random.randint(low, high)

    def flip(self, chance: float = 0.5) -> bool:
        """True with the given probability."""
        return self._random.random() < chance

    def shuffled(self, count: int) -> list[int]:
        """The numbers below `count` in random order."""
        return self._random.sample(range(count), count)

    def pick(self, *options: str) -> str:
        """One of the options."""
        return options[self.between(0, len(options) - 1)]

    def word(self, name: str) -> str:
        """An entry of one list of `words.txt`."""
        return self.pick(*word_lists()[name])

    def value(self, kind: str) -> str:
        """A value of a kind named in `relations.txt`: a generated one or an entry of the list of that name."""
        maker = self._values.get(kind)
        return maker() if maker else self.word(kind)

    def invented(self) -> str:
        """A capitalised word that is in no list."""
        syllables = "".join(
            self.word("onset") + self.word("vowel") for _ in range(self.between(1, 3 if self.flip() else 2))
        )
        return (syllables + (self.word("coda") if self.flip(0.7) else "")).capitalize()

    def person(self) -> str:
        """A full name, a titled name or a single name."""
        first = self.invented() if self.flip(INVENTED_SHARE) else self.word("first")
        last = self.invented() if self.flip(INVENTED_SHARE) else self.word("last")
        shape = self._random.random()
        if shape < 0.68:
            return f"{first} {last}"
        if shape < 0.82:
            return f"{self.word('title')} {last}"
        return first

    def town(self) -> str:
        """A town; sometimes a compound such as `Upper Vell`."""
        name = self.invented() if self.flip(0.5) else self.word("town")
        return f"{self.pick('Upper', 'New', 'Port', 'Saint', 'Great', 'Little')} {name}" if self.flip(0.15) else name

    def org(self) -> str:
        """A company, club or office."""
        name = self.invented() if self.flip() else self.pick(self.word("last"), self.word("town"))
        return f"{self.pick('', 'the ')}{name} {self.word('org')}"

    def work(self) -> str:
        """The title of a book, play or song, unquoted."""
        return self.pick(
            f"The {self.word('adjective').capitalize()} {self.word('book').capitalize()}",
            f"The {self.word('book').capitalize()} of {self.town()}",
            f"{self.word('book').capitalize()} and {self.word('book').capitalize()}",
            f"A {self.word('book').capitalize()} for {self.word('first')}",
        )

    def nature(self) -> str:
        """A named river, lake, mountain."""
        return f"the {self.invented()} {self.word('nature')}"

    def object_noun(self) -> str:
        """An object with an adjective or its place; no article."""
        noun = self.word("object")
        if self.flip(0.75):
            return f"{self.word('adjective')} {noun}"
        return f"{noun} of {self.pick(self.town(), self.word('first'))}"

    def event_noun(self) -> str:
        """An event with what it is about or where; no article."""
        if self.flip():
            return f"{self.word('topic')} {self.word('event')}"
        return f"{self.word('event')} {self.pick('in', 'at')} {self.town()}"

    def subject(self, kind: str) -> str:
        """A subject of a kind named in `relations.txt`, with its article where it needs one."""
        adjective = self.word("adjective")
        match kind:
            case "person":
                return self.person()
            case "place":
                return self.town()
            case "org":
                return self.org()
            case "work":
                return self.work()
            case "nature":
                return self.nature()
            case "thing":
                return f"the {self.object_noun()}"
            case "event":
                return f"the {self.event_noun()}"
            case "building":
                of = f" of {self.town()}" if self.flip(0.4) else ""
                return f"the {adjective + ' ' if self.flip(0.7) or not of else ''}{self.word('building')}{of}"
            case "vehicle":
                return self.pick(f"the {adjective} {self.word('vehicle')}", f"the {self.invented()}")
            case "project":
                return self.pick(
                    f"the {self.word('topic')} {self.word('project')}", f"{self.word('project')} {self.invented()}"
                )
            case "animal":
                return f"the {adjective} {self.word('animal')}"
            case "machine":
                return self.pick(
                    f"the {adjective} {self.word('machine')}", f"{self.invented().lower()}-{self.between(1, 99)}"
                )
            case "dish":
                return f"the {self.pick(adjective, self.invented())} {self.word('dish')}"
            case "law":
                return f"{self.pick(adjective, self.word('topic'))} {self.word('law')}"
        raise ValueError(f"relations.txt names the subject kind {kind!r}, which is not known")

    def a(self, noun: str) -> str:
        """The noun with its indefinite article."""
        return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"

    def amount(self) -> str:
        """A quantity, sometimes with a decimal point or a thousands comma."""
        number = self.between(2, 10 ** self.between(1, 4))
        return f"{number:,}" if self.flip(0.7) else f"{self.between(0, 99)}.{self.between(1, 9)}"

    def number(self) -> str:
        """A bare number of one to six digits."""
        number = self.between(3, 10 ** self.between(1, 6))
        return f"{number:,}" if self.flip(0.4) else str(number)

    def money(self) -> str:
        """A sum with its currency."""
        amount = f"{self.between(2, 10 ** self.between(1, 6)):,}"
        return self.pick(
            f"${amount}", f"{amount} dollars", f"{amount} pounds", f"{amount} euros", f"{amount} crowns", f"€{amount}"
        )

    def duration(self) -> str:
        """A span of time."""
        count = str(self.between(2, 99)) if self.flip() else self.word("numberword")
        return f"{count} {self.pick('seconds', 'minutes', 'hours', 'days', 'weeks', 'months', 'years')}"

    def date(self) -> str:
        """A calendar date in one of several notations."""
        day, month, year = self.between(1, 28), self.word("month"), self.between(1790, 2040)
        return self.pick(
            f"{day} {month}", f"{month} {day}", f"{day} {month} {year}", f"{month} {day}, {year}",
            f"{year}-{self.between(1, 12):02d}-{day:02d}",
        )  # fmt: skip

    def time(self) -> str:
        """A time of day."""
        hour, minute = self.between(1, 23), self.between(0, 59)
        return self.pick(
            f"{hour}:{minute:02d}", f"{1 + hour % 12} o'clock", f"half past {self.word('numberword')}",
            f"{1 + hour % 12}:{minute:02d} pm", "noon", "midnight", "sunrise", "dusk",
        )  # fmt: skip

    def code(self) -> str:
        """A password, key or label: digits, letters, or both."""
        letters = "".join(self.pick(*_LETTERS) for _ in range(self.between(2, 4)))
        digits = str(self.between(10, 999999))
        return self.pick(
            digits, digits, f"{letters}-{digits}", f"{letters}{digits}", f"{self.invented().lower()}-{digits}",
            f"{self.word('adjective')}-{self.word('animal')}-{self.between(1, 99)}", letters + letters.lower(),
            self.invented().lower(),
        )  # fmt: skip

    def file(self) -> str:
        """A file path."""
        stem = self.pick(self.identifier(), self.invented().lower())
        folder = self.pick("/etc/", "/var/log/", "config/", "src/", "", f"{self.invented().lower()}/")
        return f"{folder}{stem}.{self.pick('conf', 'log', 'yaml', 'toml', 'json', 'py', 'txt', 'md', 'ini')}"

    def identifier(self) -> str:
        """A snake_case name of one to three words."""
        words = [self.pick(self.word("topic"), self.word("book"), self.word("animal"), self.word("object"),
                           self.invented().lower()) for _ in range(self.between(1, 2))]  # fmt: skip
        return "_".join([self.word("codeverb"), *words] if self.flip() else words).replace(" ", "_").lower()
