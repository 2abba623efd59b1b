"""What a RULER sample is, and how its context is grown until the prompt has the length asked for. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from salalocal.errors import InvalidRequest

CLOSE_ENOUGH = 0.002
"""Of the length: growing a context stops this near below it."""

_TRIES = 64


@dataclass(frozen=True)
class Sample:
    """One question of one task.

    Attributes:
        instruction, context, question: the prompt, in this order.
        answer_prefix: how the answer is begun for the model.
        answers: what must stand in the answer.
        match: all of them (their share counts), or any.
        answer_tokens: room for the answer; it counts towards the length, as published.
        depth: of the first needle asked for, 0 to 1 of the context; None for tasks without.
    """

    instruction: str
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    match: Literal["all", "part"]
    answer_tokens: int
    depth: float | None = None


Measure = Callable[[Sample], int]
"""Tokens of the prompt of a sample, the room for its answer included."""


@dataclass(frozen=True)
class Growing:
    """A sample whose context can be made of any number of units: sentences, words, lines.

    Attributes:
        build: from a number of units, at least `least`; the same number gives the same sample.
        least: the fewest that make sense.
    """

    build: Callable[[int], Sample]
    least: int


def grow(growing: Growing, length: int, measure: Measure) -> Sample:
    """The largest sample of at most `length` tokens that the search finds: CLOSE_ENOUGH, or one unit short.

    Raises:
        InvalidRequest: even the smallest sample is longer.
    """
    fits, sample = growing.least, growing.build(growing.least)
    size = measure(sample)
    if size > length:
        raise InvalidRequest(f"the task takes at least {size:,} tokens and {length:,} were asked for")
    too_many: int | None = None
    rate, units = 0.0, growing.least + 32
    for tries in range(_TRIES):
        candidate = growing.build(units)
        tokens = measure(candidate)
        if units != fits:
            rate = (tokens - size) / (units - fits) or rate
        if tokens <= length:
            fits, sample, size = units, candidate, tokens
        else:
            too_many = units
        if length - size <= CLOSE_ENOUGH * length or (too_many is not None and too_many - fits <= 1):
            break
        guess = fits + int((length - size) / rate) if rate > 0 else 2 * fits + 1
        if too_many is None:
            units = max(fits + 1, guess)
        else:
            # Guesses are good while units are alike; halving ends the search where they are not.
            units = min(max(guess, fits + 1), too_many - 1) if tries < _TRIES // 4 else (fits + too_many) // 2
    return sample
