"""Three RULER tasks over the whole of a text: follow a chain of assignments, find the commonest words. No torch.

Sizes as published: one chain of four hops; ten common words 30 times each among words that occur three times; coded
words whose counts fall with the square of their rank. Variable tracking and common words begin with a solved example.
"""

from __future__ import annotations

import math
from random import Random
from string import ascii_lowercase, ascii_uppercase

from salalocal.errors import InvalidRequest
from salalocal.evaluate.ruler.needles import NOISE, hide_lines, paragraphs
from salalocal.evaluate.ruler.sample import Growing, Sample
from salalocal.evaluate.words import distinct_pairs

CHAIN_HOPS = 4
COMMON_WORDS, COMMON_COUNT, OTHER_COUNT = 10, 30, 3
CODED_LETTERS, CODED_ASKED, CODED_EXPONENT = 6, 3, 2
CODED_FILLER = "...."
_ZETA = math.pi**2 / 6  # of the exponent 2

_EXAMPLE_COMMON, _EXAMPLE_OTHERS = 3, 5
_EXAMPLE_NOISE = 12
_MOST_LISTED = 150_000


def draw_tracking(rng: Random, index: int) -> Growing:
    """Variables that hold one value, through assignments from each other, hidden in repeated sentences."""
    del index
    names = _variables(rng, 2 * (CHAIN_HOPS + 1))
    values = [str(value) for value in rng.sample(range(10_000, 100_000), 2)]
    shown, shown_depths = names[CHAIN_HOPS + 1 :], sorted(rng.random() for _ in range(CHAIN_HOPS + 1))
    asked, depths = names[: CHAIN_HOPS + 1], sorted(rng.random() for _ in range(CHAIN_HOPS + 1))
    example = _chain_text(shown, values[1], shown_depths, _EXAMPLE_NOISE)

    def build(units: int) -> Sample:
        return Sample(
            instruction="Follow the assignments of variables that are hidden in the text.\n\n"
            f"{example}\n{_chain_question(values[1])}\n{_chain_prefix(values[1]).strip()} {', '.join(shown)}\n\n"
            "Follow the assignments of variables that are hidden in the text.",
            context=_chain_text(asked, values[0], depths, units),
            question=_chain_question(values[0]),
            answer_prefix=_chain_prefix(values[0]),
            answers=tuple(asked),
            match="all",
            answer_tokens=30,
        )

    return Growing(build, least=16)


def _variables(rng: Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(ascii_uppercase, k=5))] = None
    return list(names)


def _chain_text(names: list[str], value: str, depths: list[float], units: int) -> str:
    sources = [value, *(f"VAR {name}" for name in names[:-1])]
    lines = [f"VAR {name} = {source}." for name, source in zip(names, sources, strict=True)]
    hay = [NOISE[number % len(NOISE)] for number in range(units)]
    return paragraphs(hide_lines(hay, lines, depths)[0])


def _chain_question(value: str) -> str:
    return f"Question: which variables hold the value {value}, directly or through other variables?"


def _chain_prefix(value: str) -> str:
    return f" Answer: the {CHAIN_HOPS + 1} variables that hold the value {value} are:"


def draw_common_words(rng: Random, index: int) -> Growing:
    """The ten words that occur most often in a numbered list of words."""
    del index
    seed = str(rng.random())
    # The words are drawn in one order, whatever their number: a longer list has those of a shorter one, and more.
    shown_words = distinct_pairs(rng, COMMON_WORDS + _EXAMPLE_OTHERS)
    listed = [word for word in distinct_pairs(rng, _MOST_LISTED) if word not in shown_words]
    common = listed[:COMMON_WORDS]
    task = "Below is a numbered list of words, some of which occur more often than others. Find those."
    question = f"Question: which {COMMON_WORDS} words occur most often in the list?"
    prefix = f" Answer: the {COMMON_WORDS} words that occur most often are:"
    example = _numbered(rng, shown_words[:COMMON_WORDS], _EXAMPLE_COMMON, shown_words[COMMON_WORDS:], 1)
    solved = " ".join(f"{number}. {word}" for number, word in enumerate(shown_words[:COMMON_WORDS], start=1))

    def build(units: int) -> Sample:
        others = listed[COMMON_WORDS : COMMON_WORDS + units]
        if len(others) < units:
            raise InvalidRequest(f"a list of {units:,} different words was asked for and there are {len(others):,}")
        return Sample(
            instruction=f"{task}\n{example}\n{question}\n{prefix.strip()} {solved}\n\n{task}",
            context=_numbered(Random(f"common {seed} {units}"), common, COMMON_COUNT, others, OTHER_COUNT),
            question=question,
            answer_prefix=prefix,
            answers=tuple(common),
            match="all",
            answer_tokens=120,
        )

    return Growing(build, least=1)


def _numbered(rng: Random, common: list[str], often: int, others: list[str], seldom: int) -> str:
    items = common * often + others * seldom
    rng.shuffle(items)
    return " ".join(f"{number}. {word}" for number, word in enumerate(items, start=1))


def draw_coded_words(rng: Random, index: int) -> Growing:
    """The three most frequent of coded words; the most frequent of all is dots, to be left out of account."""
    del index
    seed, letters = str(rng.random()), Random(f"coded {rng.random()}")
    words = {CODED_FILLER: None}

    def build(units: int) -> Sample:
        counts: list[int] = []
        while (count := int(units / (_ZETA * (len(counts) + 1) ** CODED_EXPONENT))) >= 1:
            counts.append(count)
        while len(words) < len(counts):
            words["".join(letters.choices(ascii_lowercase, k=CODED_LETTERS))] = None
        text = [word for word, count in zip(words, counts, strict=False) for _ in range(count)]
        Random(f"order {seed} {units}").shuffle(text)
        return Sample(
            instruction="Read the coded text below and count how often each coded word occurs.",
            context=" ".join(text),
            question=f"Question: leaving out the dots '{CODED_FILLER}', which three coded words occur most often? "
            "Give the words and nothing else.",
            answer_prefix=" Answer: the three coded words that occur most often are:",
            answers=tuple(list(words)[1 : CODED_ASKED + 1]),
            match="all",
            answer_tokens=50,
        )

    # So many that no two of the first five ranks can have the same count.
    return Growing(build, least=200)
