"""Other words for questions: lower-case words change, names, codes and question words do not."""

from __future__ import annotations

import numpy as np

from salalocal.training.lexicon import Lexicon
from salalocal.training.rewording import Rewording

SYNONYMS = {"conceal": ["hide"], "violin": ["fiddle", "instrument"], "repair": ["mend"], "where": ["whither"]}


def rewording(seed: int = 0) -> Rewording:
    return Rewording(Lexicon(np.random.default_rng(seed)), SYNONYMS)


def test_words_of_a_question_are_put_otherwise() -> None:
    found = {rewording(seed).question("Where did Violin Mercer conceal the violin?", 1.0) for seed in range(12)}
    assert found == {f"Where did Violin Mercer hide the {word}?" for word in ("fiddle", "instrument")}


def test_an_inflected_word_is_found_by_its_base() -> None:
    assert rewording().word("repaired", 1.0, 0.0) == "mend"
    assert rewording().word("repaired", 0.0, 1.0) == "repair"


def test_codes_files_and_question_words_stay() -> None:
    question = "where is violin_repair set in src/violin.py, violin-7 or violin() of the violin's owner"
    assert rewording().question(question, 1.0) == question
