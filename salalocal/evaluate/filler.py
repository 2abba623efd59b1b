"""Made-up prose for questions to be hidden in: endless, the same for the same seed, read by no model before.

A chronicle of walks, weather and errands in places that do not exist. Its sentences come from a small grammar with
invented names; none of them states who somebody is, what something is called or costs, when anything was founded or
why anything happened, so that it does not answer questions that it was not made for. Knows no tokens.
"""

from __future__ import annotations

import re
from random import Random

from salalocal.evaluate.words import ADJECTIVES, NOUNS, invented_name, invented_place

_SENTENCES = (
    "{who} walked along the {adj} {noun} until the light went.",
    "Nobody in {place} spoke of the {noun} that week.",
    "The {noun} stood beside the {noun}, as it always had.",
    "{when}, {who} carried {number} {adj} planks past the {noun}.",
    "There was a {adj} smell of {stuff} in the air.",
    "{who} and {who} sat down near the {noun} and said little.",
    "The road to {place} was {adj}, and the carts were slow.",
    "{when} the wind turned, and {stuff} drifted across the yard.",
    "A {adj} {noun} and a {adj} {noun} lay side by side in the grass.",
    "It took {number} steps to reach the {noun}, and {number} more to come back.",
    "From the {noun} one could see as far as {place}.",
    "{who} looked at the {adj} sky and went inside.",
    "Some of the {noun} was wet, and some of it was covered with {stuff}.",
    "They passed {place} without stopping, for the day was {adj}.",
    "{when} there was {stuff} on every {noun}.",
    "The {adj} {noun} creaked, but {who} slept on.",
    "Between {place} and {place} the path runs through {adj} country.",
    "{who} counted {number} birds over the {noun} and lost count.",
    "What was left of the {noun} had been put under a {adj} cloth.",
    "All day the {noun} turned in the {adj} wind.",
    "{who} remembered a {noun} much like this one, only more {adj}.",
    "The {stuff} was heaped against the {noun}, and the {noun} leaned a little.",
    "Not far from there, {number} {adj} stones marked the edge of the field.",
    "{when} {who} came home by way of {place}, {adj} and silent.",
    "If the {noun} had been more {adj}, nobody would have noticed it.",
    "They talked about {stuff}, about the {noun}, and about nothing at all.",
    "The people of {place} are said to be {adj} in winter and {adj} in summer.",
    "{who} opened the {noun} slowly, looked in, and closed it again.",
    "A little {stuff} remained at the bottom of the {noun}.",
    "The evening was {adj}, and the lamps of {place} were lit early.",
    "Behind the {noun} the ground fell away towards a {adj} stream.",
    "{who} would have liked to stay, but the {noun} would not wait.",
    "Once more the {adj} dog barked, and once more it was only the {noun}.",
    "{number} of them went ahead; the others followed with the {noun}.",
    "In {place} every {noun} looks towards the water.",
    "The sound of the {noun} carried over the {adj} fields.",
    "{who} shook the {stuff} from a sleeve and smiled.",
    "{when} the {noun} seemed larger than by day, and more {adj}.",
    "Here the wall is {adj}, there it is hardly a wall any more.",
    "Much was said in {place} about the {adj} {noun}, and little of it twice.",
)
_TIMES = (
    "Before noon",
    "Towards evening",
    "After the rain",
    "On the following day",
    "Late in the season",
    "In the first hours",
    "While the others rested",
    "At the turn of the tide",
    "Some time later",
    "As the mist rose",
)
_STUFF = ("straw", "smoke", "dust", "snow", "salt", "sawdust", "ash", "clay", "sand", "moss", "tar", "wax", "foam")
_NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine", "eleven", "twelve", "fifteen", "twenty", "thirty")
_ROLES = (
    "the ferryman", "the old woman", "a boy from the mill", "the miller", "one of the brothers", "the stranger",
    "a girl in a grey coat", "the postman", "somebody", "the younger sister", "the watchman", "a man with a cart",
)  # fmt: skip
_NAMED_SHARE = 0.3
"""So many of the people have a name; in prose most go by less."""

_SLOT = re.compile(r"\{(\w+)\}")


class Filler:
    """Paragraphs of made-up prose, one after the other.

    Args:
        seed: the same seed gives the same paragraphs, on every machine.
    """

    def __init__(self, seed: str) -> None:
        self._rng = Random(f"filler {seed}")
        # A chronicle keeps coming back to its people and places; a new one turns up now and then.
        self._names = [invented_name(self._rng) for _ in range(12)]
        self._places = [invented_place(self._rng) for _ in range(8)]

    def sentence(self) -> str:
        """The next sentence, full stop included."""
        text = _SLOT.sub(lambda slot: self._word(slot[1]), self._rng.choice(_SENTENCES))
        return text[0].upper() + text[1:]

    def paragraph(self) -> list[str]:
        """The next paragraph as its sentences, three to eight of them."""
        if self._rng.random() < 0.3:
            self._names[self._rng.randrange(len(self._names))] = invented_name(self._rng)
            self._places[self._rng.randrange(len(self._places))] = invented_place(self._rng)
        return [self.sentence() for _ in range(self._rng.randint(3, 8))]

    def _word(self, slot: str) -> str:
        if slot == "who":
            return self._rng.choice(self._names if self._rng.random() < _NAMED_SHARE else _ROLES)
        choices = {
            "place": self._places,
            "adj": ADJECTIVES,
            "noun": NOUNS,
            "when": _TIMES,
            "stuff": _STUFF,
            "number": _NUMBERS,
        }
        return self._rng.choice(choices[slot])
