"""The eight needle tasks of RULER: numbers or codes hidden in a haystack under a key, and asked for by it.

What varies, as published: the haystack (the same few sentences over and over, prose, or nothing but needles), keys
and values (words, numbers, UUIDs), and how many keys, values per key and keys asked for there are. No torch.
"""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Literal

from salalocal.evaluate.filler import Filler
from salalocal.evaluate.ruler.sample import Growing, Sample
from salalocal.evaluate.words import distinct_pairs

NOISE = ("The lamp is lit.", "The road is long.", "The rain is over.", "We go up and come down again.")
DEPTH_ROWS = 10
"""Samples take turns in tenths of the depth, so that a heat map has as many in each."""

_ANSWER_TOKENS = 128
_PARAGRAPH_SENTENCES = 6


@dataclass(frozen=True)
class NeedleTask:
    """One of the eight; the defaults are those of the plainest."""

    haystack: Literal["noise", "prose", "needles"]
    key: Literal["word", "uuid"] = "word"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values_per_key: int = 1
    asked: int = 1

    def draw(self, rng: Random, index: int) -> Growing:
        """The sample number `index`, drawn by `rng`."""
        count = self.keys * self.values_per_key
        values = self.draw_values(rng, count)
        depths = [rng.random() for _ in values]
        # Not at the very edge of its tenth: the next gap between two sentences might lie beyond.
        depths[0] = (index % DEPTH_ROWS + 0.1 + 0.8 * depths[0]) / DEPTH_ROWS
        hay = _Hay(self, str(rng.random()), values)
        answers = tuple(values[: self.asked * self.values_per_key])
        noun, nouns = self._noun(len(answers)), self._noun(2)
        verb, every = ("are", "all ") if len(answers) > 1 else ("is", "")

        def build(units: int) -> Sample:
            keys, sentences = hay.take(units)
            needles = [self.needle(keys[number // self.values_per_key], value) for number, value in enumerate(values)]
            context, depth = _hide(sentences, needles, depths)
            asked = _listed(keys[: self.asked])
            return Sample(
                instruction=f"The text below hides some secret {nouns}. Remember them: afterwards you will be asked "
                f"for secret {nouns}.",
                context=context,
                question=f"What {verb} {every}the secret {noun} kept for {asked} in the text?",
                answer_prefix=f" The secret {noun} kept for {asked} in the text {verb}",
                answers=answers,
                match="all",
                answer_tokens=_ANSWER_TOKENS,
                depth=depth,
            )

        return Growing(build, least=count + 8)

    def needle(self, key: str, value: str) -> str:
        """The sentence that hides a value under a key."""
        return f"A secret {self._noun(1)} kept for {key} is: {value}."

    def draw_keys(self, rng: Random, count: int) -> list[str]:
        """Different keys."""
        return [str(_uuid(rng)) for _ in range(count)] if self.key == "uuid" else distinct_pairs(rng, count)

    def draw_values(self, rng: Random, count: int) -> list[str]:
        """Different values."""
        if self.value == "uuid":
            return [str(_uuid(rng)) for _ in range(count)]
        return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]

    def _noun(self, count: int) -> str:
        return ("number" if self.value == "number" else "code") + ("s" if count > 1 else "")


class _Hay:
    """The keys of one sample and the sentences around its needles, for any number of them."""

    def __init__(self, task: NeedleTask, seed: str, values: Sequence[str]) -> None:
        self._task, self._seed, self._values = task, seed, set(values)
        self._filler, self._prose = Filler(seed), list[str]()

    def take(self, units: int) -> tuple[list[str], list[str]]:
        """The keys asked for and beside them, and `units` sentences."""
        task = self._task
        if task.haystack == "needles":
            # Keys of needles and hay are drawn together, so that those asked for are of no other make.
            rng = Random(f"hay {self._seed} {units}")
            keys = task.draw_keys(rng, task.keys + units)
            drawn = task.draw_values(rng, units + len(self._values))
            values = [value for value in drawn if value not in self._values][:units]
            return keys[: task.keys], [task.needle(*pair) for pair in zip(keys[task.keys :], values, strict=True)]
        keys = task.draw_keys(Random(f"keys {self._seed}"), task.keys)
        if task.haystack == "noise":
            return keys, [NOISE[number % len(NOISE)] for number in range(units)]
        while len(self._prose) < units:
            self._prose.append(self._filler.sentence())
        return keys, self._prose[:units]


def hide_lines(hay: Sequence[str], lines: Sequence[str], depths: Sequence[float]) -> tuple[list[str], list[int]]:
    """`lines` put in at `depths` of the characters of the hay; and where each then stands among all lines."""
    ends = list(accumulate(len(line) + 1 for line in hay))
    order = sorted(range(len(lines)), key=lambda number: depths[number])
    merged: list[str] = []
    at, start = [0] * len(lines), 0
    for number in order:
        stop = bisect_right(ends, depths[number] * ends[-1])
        merged += hay[start:stop]
        at[number] = len(merged)
        merged.append(lines[number])
        start = stop
    merged += hay[start:]
    return merged, at


def _hide(hay: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> tuple[str, float]:
    """The whole context as paragraphs, and the depth of the first needle in it."""
    lines, at = hide_lines(hay, needles, depths)
    before = sum(len(line) + 1 for line in lines[: at[0]])
    context = paragraphs(lines)
    return context, before / len(context)


def paragraphs(sentences: Sequence[str]) -> str:
    """Sentences joined, with a line end after every few."""
    rows = range(0, len(sentences), _PARAGRAPH_SENTENCES)
    return "\n".join(" ".join(sentences[row : row + _PARAGRAPH_SENTENCES]) for row in rows)


def _uuid(rng: Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
