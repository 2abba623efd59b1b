"""Filler that repeats itself: the sentences of a text with other words, as long as wanted."""

from __future__ import annotations

import numpy as np

from salalocal.training.lexicon import Lexicon
from salalocal.training.monotony import MIN_PATTERNS, Monotony

TEXT = " ".join(
    f"He carried {n} wooden planks past the {noun} and Harriet looked at the water."
    for n, noun in enumerate(["gate", "tower", "harbour", "meadow", "bridge", "chapel", "orchard", "market"])
)


def test_it_says_the_same_with_other_words() -> None:
    monotony = Monotony(Lexicon(np.random.default_rng(1)), TEXT)
    text = monotony.text(8000)
    assert len(text) >= 8000
    assert "{" not in text
    assert text.count(" past the ") > 60
    assert "Harriet" not in text
    planks = {sentence.split(" past the ")[0] for sentence in text.split(".")}
    assert len(planks) > 40


def test_too_few_sentences_are_no_pattern() -> None:
    sentences = TEXT.split(". ")[: MIN_PATTERNS - 1]
    assert Monotony(Lexicon(np.random.default_rng(1)), ". ".join(sentences) + ".").patterns == []
