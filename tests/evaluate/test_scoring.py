"""When answers count, lengths, and intervals, against cases worked out by hand."""

from __future__ import annotations

import pytest

from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import format_length, parse_lengths
from salalocal.evaluate.scoring import contains_any, is_any, match_all, match_part, normalize, says_absent, wilson
from salalocal.training.statements import ABSENT_ANSWER


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        (" Sylvia  Richardson. ", "sylvia richardson"),
        ("“The Violin”\n of Bath!", "the violin” of bath".replace("”", '"')),
        ("(1731)", "1731"),
        ("-5", "-5"),
        ("- five", "five"),
        ("12 %", "12 %"),
        ("$3.50", "$3.50"),
        ("948-987-8917", "948-987-8917"),
        ("...", "..."),
        (" + ", "+"),
        ("", ""),
    ],
)
def test_normalize(text: str, normal: str) -> None:
    assert normalize(text) == normal


def test_any_accepted_answer_counts_but_no_other() -> None:
    assert is_any(" The Quay.", ["the harbour", "the quay"])
    assert not is_any("the old quay", ["the quay"])
    assert not is_any("", ["the quay"])
    assert not is_any("", ["..."])
    assert not contains_any("the quay", ["..."])


@pytest.mark.parametrize(
    ("answer", "contained"), [("It was 14 of them.", True), ("It was 140.", False), ("x14", False), ("(14)", True)]
)
def test_contained_answers_are_whole_words(answer: str, contained: bool) -> None:
    assert contains_any(answer, ["14"]) is contained


@pytest.mark.parametrize(
    "answer",
    [
        ABSENT_ANSWER,
        f" {ABSENT_ANSWER}",
        "The document does not say.",
        "This isn't mentioned anywhere",
        "It is not stated in the passage.",
        "I don't know.",
        "There is no information about that.",
        "not in the text",
    ],
)
def test_ways_to_say_that_it_is_not_there(answer: str) -> None:
    assert says_absent(answer)


@pytest.mark.parametrize(
    "answer", ["Not Paris but Rome", "in the text", "the notary", "1731", "", "No. 5", "a knot in it"]
)
def test_answers_that_say_something(answer: str) -> None:
    assert not says_absent(answer)


def test_an_article_in_front_makes_no_difference() -> None:
    assert is_any("The third drawer.", ["third drawer"])
    assert is_any("houseboat", ["a houseboat"])
    assert not is_any("anchor", ["chor"])
    assert not is_any("the", ["a"])


def test_a_long_answer_is_not_taken_for_a_refusal() -> None:
    assert not says_absent("the text does not say " + "and so on " * 20)


def test_ruler_matches_as_published() -> None:
    assert match_all("It is ALPHA, and gamma", ["alpha", "beta"]) == 0.5
    assert match_part("It is beta", ["alpha", "beta"]) == 1.0
    assert match_part("It is delta", ["alpha", "beta"]) == 0.0


def test_wilson_by_hand() -> None:
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(200, 200) == (pytest.approx(0.9812, abs=1e-4), pytest.approx(1.0))


def test_lengths_are_read_and_written() -> None:
    assert parse_lengths("8K, 64k,1M,1.5K,5000", 1024, 1 << 21) == (8192, 65536, 1 << 20, 1536, 5000)
    assert [format_length(tokens) for tokens in (8192, 1 << 20, 5000)] == ["8K", "1M", "5,000"]
    assert parse_lengths("8K,8192", 1024, 1 << 21) == (8192,)


@pytest.mark.parametrize("text", ["", "8Q", "-8K", "8K,,64K", "512", "4M", "nan", "1e6"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="length"):
        parse_lengths(text, 1024, 1 << 21)
