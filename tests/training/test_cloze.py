"""Questions about any sentence: the answer stands where it is said to stand, and the question does not give it away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salalocal.training.cloze import ClozeMaker
from salalocal.training.lexicon import Lexicon
from salalocal.training.synonyms import read_synonyms

TEXT = (
    "The harbour master of Trelling painted three warning signs on the northern breakwater in March 1907. "
    "Because the ferryman Oswin had lost his lantern, the passengers waited under the old chestnut tree. "
    "Each winter the widow Perrault repairs fishing nets for the sailors of Quimby with waxed thread. "
    "Nobody in the valley remembered why the chapel bell was hidden inside the granary. "
)


def lexicon(seed: int = 0) -> Lexicon:
    return Lexicon(np.random.default_rng(seed))


def test_answers_are_spans_of_the_text_that_the_question_lacks() -> None:
    seen = set()
    for seed in range(60):
        for cloze in ClozeMaker(lexicon(seed), {}, TEXT).draw(4):
            answer = TEXT[cloze.start : cloze.end]
            seen.add(answer)
            assert answer == answer.strip(" ,.")
            assert len(answer.split()) <= 10
            if len(answer.split()) > 1:
                assert answer.lower() not in cloze.question.lower()
    assert len(seen) > 25
    assert {"three warning signs", "waxed thread"} & seen


def test_a_question_keeps_words_that_find_its_sentence() -> None:
    for seed in range(30):
        for cloze in ClozeMaker(lexicon(seed), {}, TEXT).draw(4):
            rare = [word for word in cloze.question.split() if TEXT.lower().count(word.lower().rstrip("s")) <= 2]
            assert len(rare) >= 2, cloze


def test_a_title_ends_no_sentence() -> None:
    text = "Late in the evening the bookkeeper went across the frozen river to Dr. Felgenhauer and his clocks."
    assert all(not cloze.question.endswith("Dr") for cloze in ClozeMaker(lexicon(), {}, text).draw(3))
    assert ClozeMaker(lexicon(), {}, text.partition(" Felg")[0]).draw(3) == []


def test_sentences_are_asked_about_once_each() -> None:
    made = ClozeMaker(lexicon(), {}, TEXT).draw(10)
    assert len(made) <= 4
    ends = [TEXT.count(".", 0, cloze.start) for cloze in made]
    assert len(set(ends)) == len(ends)


def test_synonyms_take_the_place_of_words() -> None:
    questions = " ".join(
        cloze.question for seed in range(80) for cloze in ClozeMaker(lexicon(seed), {"nets": ["webs"]}, TEXT).draw(4)
    )
    assert "webs" in questions
    assert "nets" in questions


@pytest.mark.parametrize(
    "text", ["", "short. Text.", "def f(x):\n    return x\n", "Ein � Satz mit einem Loch darin ist keiner hier."]
)
def test_texts_without_sentences_give_nothing(text: str) -> None:
    assert ClozeMaker(lexicon(), {}, text).draw(5) == []


def test_synonyms_come_from_the_commonest_sense_and_the_next_broader_one(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("  1 header\n")
        (tmp_path / f"index.{part}").write_text("  1 header\n")
    (tmp_path / "data.verb").write_text(
        "  1 header\n"
        '00000001 30 v 03 mend 0 repair 1 fix_up 0 001 @ 00000009 v 0000 | restore; "she mended it"\n'
        "00000002 30 v 02 repair 0 resort 0 000 | go to\n"
        "00000003 30 v 02 rare 0 scarce 0 000 | never counted\n"
        "00000009 30 v 02 improve 0 better 0 000 | broader\n"
    )
    (tmp_path / "index.verb").write_text(
        "  1 header\nrepair v 2 1 @ 2 1 00000001 00000002\nmend v 1 1 @ 1 1 00000001\nrare v 1 0 1 0 00000003\n"
    )
    assert read_synonyms(tmp_path) == {"repair": ["mend", "improve", "better"], "mend": ["repair", "improve", "better"]}
