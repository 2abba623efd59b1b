"""Facts in free wording: blocks are read or refused by name, answers stand in their facts, no two facts collide."""

from __future__ import annotations

import numpy as np
import pytest

from salalocal.training.lexicon import Lexicon
from salalocal.training.statements import Split
from salalocal.training.tales import TALES, TaleScene, parse_tales, tales

BLOCK = """
F The lighthouse at {1:town} was switched off in {2:year} because {3:a storm tore off its lantern / the oil ran out}.
F Since {2}, when {3}, no lamp has burned at {1}.
Q2 When did the light at {1} go out?
Q3 Why is the lighthouse at {1} dark?
Q1 Which town's lighthouse has been dark since {2}?
"""


def lexicon(seed: int = 0) -> Lexicon:
    return Lexicon(np.random.default_rng(seed))


def test_a_block_is_read() -> None:
    (tale,) = parse_tales(BLOCK, "a")
    assert tale.kinds == {"1": "town", "2": "year", "3": ("a storm tore off its lantern", "the oil ran out")}
    assert tale.wordings[0].startswith("The lighthouse at {1} was switched off in {2}")
    assert tale.questions[0] == ("2", "When did the light at {1} go out?")


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("F A {1:town}.\n", "not F lines and Qn lines"),
        ("F A {1:town}.\nQ1 What?\nnonsense", "not F lines and Qn lines"),
        ("F A {1:nokind}.\nQ1 What?", "neither a kind nor alternatives"),
        ("F A {1:town}.\nQ1 What is {2}?", "does not define"),
        ("F A {1:town}.\nQ1 What is {1}?", "gives slot 1 away"),
        ("F A {1:town} {1:year}.\nQ1 What?", "twice"),
        ("F A {1:town}.\nF {x}.\nQ1 What?", "does not define"),
    ],
)
def test_what_is_no_block_is_refused_by_name(block: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refused:
        parse_tales(block, "somefile")
    assert "somefile" in str(refused.value)


def test_answers_stand_in_their_facts() -> None:
    for statement in TaleScene(lexicon(), tales(Split.TRAINED)).cells(400):
        for ask in statement.asks:
            ((low, high),) = ask.spans
            assert 0 <= low < high <= len(statement.text)
            assert statement.text[low:high].strip()


def test_questions_put_a_paired_alternative_in_their_own_words() -> None:
    (tale,) = parse_tales("F The {1:thief ~ burglar / widow ~ lady} ran to {2:town}.\nQ2 Where did the {1} go?", "a")
    told = set()
    for seed in range(20):
        for statement in TaleScene(lexicon(seed), [tale]).cells(4):
            ((low, high),) = statement.asks[0].spans
            assert f"ran to {statement.text[low:high]}." in statement.text
            assert "~" not in statement.text + statement.asks[0].question
            told.add((statement.text.split()[1], statement.asks[0].question.split(" did the ")[1].split()[0]))
    assert told == {("thief", "burglar"), ("widow", "lady")}


def test_two_tellings_of_one_tale_answer_none_of_each_others_questions() -> None:
    (tale,) = parse_tales(BLOCK, "a")
    for seed in range(40):
        scene = TaleScene(lexicon(seed), [tale])
        answers: dict[tuple[str, ...], set[str]] = {}
        for statement in scene.cells(8):
            for ask in statement.asks:
                ((low, high),) = ask.spans
                answers.setdefault(ask.key, set()).add(statement.text[low:high])
        assert all(len(found) == 1 for found in answers.values())


def test_every_tale_is_trained_on_or_held_out() -> None:
    trained, unseen = ({tale.name for tale in tales(split)} for split in Split)
    assert not trained & unseen
    blocks = sum(len(parse_tales(path.read_text("utf-8"), path.stem)) for path in TALES.glob("*.txt"))
    assert len(trained) > 6000
    assert 0.06 * blocks < len(unseen) < 0.11 * blocks


def test_borrowed_questions_are_about_names_of_the_text_and_from_tales_that_are_not_told() -> None:
    scene = TaleScene(lexicon(), tales(Split.TRAINED))
    statements = scene.cells(20)
    told = {ask.key[1] for statement in statements for ask in statement.asks}
    text = " ".join(statement.text for statement in statements)
    asks = scene.borrowed(60, Split.TRAINED)
    assert len(asks) > 20
    assert not any(ask.spans or ask.key[1] in told for ask in asks)
    # A name may be of a statement that had no place any more.
    named = [ask for ask in asks if any(value.split("=", 1)[1] in text for value in ask.key[3:])]
    assert len(named) > 0.7 * len(asks)


def test_nothing_is_borrowed_for_an_empty_text() -> None:
    assert TaleScene(lexicon(), tales(Split.TRAINED)).borrowed(5, Split.TRAINED) == []
