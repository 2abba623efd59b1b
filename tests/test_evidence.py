"""Quotes found in answers, and matched to their places."""

from __future__ import annotations

import random
import time

import pytest

from salalocal.documents import Document, Place, SourceFile, Span
from salalocal.evidence import QuoteIndex, QuoteMatch, match_quotes
from salalocal.evidence.passages import Passage, find_passages, split_at_ellipses, split_by_words

LIGHTHOUSE = """# The Lighthouse on Kestrel Rock

The lighthouse was built in 1871 by Ada Marlowe, a well-known engi-
neer from Leith. It stands forty-two metres above the sea.

“I don’t believe in ghosts,” she wrote, “but the stairs… they count themselves.”
The keeper’s wage was £5 a year; coal cost −3% less than oil.
"""
CODE = "def f(a, b):\n    if a != b:\n        return a - b\n    return some_name(a)\n"


def document(name: str = "shelf", **files: str) -> Document:
    return Document(name, tuple(SourceFile(path, (Span(text, line=1),)) for path, text in files.items()))


SHELF = document(**{"rock.md": LIGHTHOUSE, "f.py": CODE})


def only(answer: str, *documents: Document) -> QuoteMatch:
    (match,) = match_quotes(answer, documents or (SHELF,))
    return match


@pytest.mark.parametrize(
    ("quote", "line"),
    [
        pytest.param('"The lighthouse was built in 1871"', 3, id="straight"),
        pytest.param("“the LIGHTHOUSE   was built in 1871,”", 3, id="case-space-comma"),
        pytest.param("«It stands forty-two metres above the sea»", 4, id="guillemets"),
        pytest.param("„It stands forty two“ — nothing", None, id="german-hyphen-is-no-space"),
        pytest.param("'I don't believe in ghosts'", 6, id="single"),
        pytest.param('"I don\'t believe in ghosts"', 6, id="typographic-apostrophe"),
        pytest.param('"a well‑known engineer from Leith"', 3, id="hyphenated-at-line-end"),
        pytest.param('"**Ada Marlowe**"', 3, id="emphasis"),
        pytest.param('"£5 a year"', 7, id="currency"),
        pytest.param('"$5 a"', None, id="other-currency"),
        pytest.param('"Marlowe"', 3, id="one-word"),
        pytest.param('"Marlow"', None, id="one-word-misspelt"),
        pytest.param('"Marlowe Ada"', None, id="two-words-in-other-order"),
        pytest.param("> It stands forty-two metres\n> above the sea.\n> — A history", 4, id="block"),
    ],
)
def test_quotes_find_their_lines(quote: str, line: int | None) -> None:
    match = only(quote)
    assert match.quoted
    if line is None:
        assert match.place is None
    else:
        assert match.place == Place("rock.md", None, line)
        assert match.score == 1.0


def test_a_changed_word_lowers_the_score() -> None:
    right = only('"The lighthouse was built in 1871 by Ada Marlowe"')
    wrong = only('"The lighthouse was raised in 1871 by Ada Marlowe"')
    assert right.score == 1.0
    assert 0.8 < wrong.score < 1.0
    assert wrong.place == Place("rock.md", None, 3)


def test_a_misprint_costs_less_than_a_word() -> None:
    misprint = only('"The lighthouse was built in 1871 by Ada Marlow"').score
    other = only('"The lighthouse was built in 1871 by Ada Stevenson"').score
    assert other < misprint < 1.0


def test_signs_count_in_code() -> None:
    right, wrong = only('"if a != b:"'), only('"if a == b:"')
    assert right.score == 1.0
    assert right.place == Place("f.py", None, 2)
    assert wrong.score < 0.9


@pytest.mark.parametrize(
    "quote",
    [
        '"The engineer never visited the rock and hated the sea."',
        '"The lighthouse was painted red by a group of schoolchildren from the town"',
        "“Ghosts count the metres above the keeper”",
        '"zzz qqq xxx www"',
    ],
)
def test_invented_quotes_are_not_in_the_text(quote: str) -> None:
    match = only(quote)
    assert match.place is None
    assert match.score < 0.75
    assert match.quoted


def test_unquoted_sentences_are_reported_only_where_they_match() -> None:
    answer = (
        "It stands forty-two metres above the sea. In my opinion the tower is rather small, as towers go. "
        "It was built.\n- The lighthouse was built in 1871 by Ada Marlowe."
    )
    assert [(m.text, m.place, m.quoted) for m in match_quotes(answer, [SHELF])] == [
        ("It stands forty-two metres above the sea.", Place("rock.md", None, 4), False),
        ("The lighthouse was built in 1871 by Ada Marlowe.", Place("rock.md", None, 3), False),
    ]


def test_ellipses_divide_unless_they_are_the_texts_own() -> None:
    pieces = match_quotes("“The lighthouse was built … by Ada Marlowe [...] from Leith”", [SHELF])
    assert [(m.text, m.place) for m in pieces] == [
        ("The lighthouse was built", Place("rock.md", None, 3)),
        ("by Ada Marlowe", Place("rock.md", None, 3)),
        ("from Leith", Place("rock.md", None, 4)),
    ]
    assert only('"but the stairs... they count themselves"').text == "but the stairs... they count themselves"


def test_pieces_follow_one_another() -> None:
    text = "\n".join(["the end", "a first part of some length", "middle", "the end", "the end"])
    pieces = match_quotes('"a first part of some length ... the end"', [document(a=text)])
    assert [m.place.line for m in pieces if m.place] == [2, 4]


def test_of_equal_places_the_first_in_library_order() -> None:
    first = document("one", a="something else\nthe same five words here\n")
    second = document("two", b="the same five words here\n")
    assert only('"the same five words here"', first, second).place == Place("a", None, 2)


def test_same_names_in_two_documents_are_told_apart() -> None:
    one, two = document("one", readme="alpha beta gamma delta"), document("two", readme="one two three four")
    assert only('"one two three four"', one, two).place == Place("two/readme", None, 1)


def test_pages_and_passages_across_them() -> None:
    spans = (Span("It begins on the first page and\n", page=1), Span("ends on the second page.\n", page=2))
    book = Document("book", (SourceFile("book.pdf", spans),))
    assert only('"on the first page and ends on the second"', book) == QuoteMatch(
        *("on the first page and ends on the second", Place("book.pdf", 1), 1.0, True),
        found="on the first page and ends on the second",
    )
    assert str(only('"ends on the second page"', book).place) == "book.pdf, page 2"


def test_passages_never_span_files() -> None:
    shelf = document(a="alpha beta gamma", b="delta epsilon zeta")
    assert only('"alpha beta gamma delta epsilon zeta"', shelf).score < 0.75


def test_scripts_without_spaces() -> None:
    shelf = document(a="第一行没有什么。\n灯塔建于一八七一年,由一位工程师建造。\n")
    assert only("“灯塔建于一八七一年”", shelf) == QuoteMatch(
        "灯塔建于一八七一年", Place("a", None, 2), 1.0, True, "灯塔建于一八七一年"
    )
    assert only("「灯塔建于一九七一年,由一位画家建造」", shelf).score < 1.0
    assert only("“月亮上面有一只白色的兔子”", shelf).place is None


def test_accents_and_ligatures() -> None:
    shelf = document(a="The ﬁrst café of Zoe\u0308 Straße")
    assert only('"the first café of Zoë STRASSE"', shelf).score == 1.0


@pytest.mark.parametrize("answer", ["", "...", '""', "> \n>", "“”", '"!!!"', "\ufffc\ufffc", "```\n```"])
def test_answers_that_say_nothing(answer: str) -> None:
    assert match_quotes(answer, [SHELF]) == ()


def test_no_documents() -> None:
    assert only('"some quoted words here"', Document("empty", ())).place is None


def test_repeated_quotes_are_reported_once() -> None:
    assert len(match_quotes('"Ada Marlowe" and "Ada Marlowe"', [SHELF])) == 1


def test_passages_in_order_of_the_answer() -> None:
    answer = (
        'He said "one two" and left.\n\n> block\n> quote\n>\n> second\n\n'
        '```py\nprint("no quote")\n```\nIt\'s 6" wide. \'70s'
    )
    assert find_passages(answer) == [
        Passage("He said", False),
        Passage("one two", True),
        Passage("and left.", False),
        Passage("block\nquote", True),
        Passage("second", True),
        Passage('print("no quote")', False),
        Passage("It's 6\" wide.", False),
        Passage("'70s", False),
    ]


def test_splitting() -> None:
    assert split_at_ellipses("… a b . . . c [...] d (…) ...") == ["a b", "c", "d"]
    assert split_by_words("one, two, three, four, five", 2) == ["one, two,", "three, four,", "five"]
    assert split_by_words("", 2) == [""]


@pytest.mark.parametrize("unit", ["the ", "a b ", "« ", "“a ", '"a ', "'a b ", "> a\n", "... ", "字", "- ", "*a "])
def test_hostile_answers_stay_fast(unit: str) -> None:
    index = QuoteIndex([document(a=unit * 20_000 + LIGHTHOUSE)])
    start = time.perf_counter()
    index.match(unit * 5_000)
    index.match('"' + unit * 1_500 + '"')
    assert time.perf_counter() - start < 5.0


def test_a_large_shelf_is_indexed_and_searched_fast() -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]
    words = [vocabulary[min(int(rng.paretovariate(0.6)), 20_000) - 1] for _ in range(600_000)]
    text = "\n".join(" ".join(words[i : i + 12]) for i in range(0, len(words), 12))
    start = time.perf_counter()
    index = QuoteIndex([document(a=text)])
    indexed = time.perf_counter()
    answer = "\n".join(f'"{" ".join(words[i : i + 15])}"' for i in range(1000, 500_000, 5000))
    matches = index.match(answer)
    searched = time.perf_counter()
    assert len(text) > 3_000_000
    assert all(match.score == 1.0 for match in matches)
    assert [match.place.line for match in matches if match.place] == [i // 12 + 1 for i in range(1000, 500_000, 5000)]
    assert indexed - start < 10.0
    assert searched - indexed < 5.0


@pytest.mark.parametrize("year", ["1926", "1851", "30"])
def test_a_sentence_with_another_number_has_no_place(year: str) -> None:
    text = "The light on the rock was made automatic in 1984, and the last keeper left it in June."
    document = Document("rock", (SourceFile("rock.md", (Span(text, line=1),)),))
    altered = text.replace("1984", year)
    (quote,) = match_quotes(f'"{altered}"', [document])
    assert quote.place is None
    assert match_quotes(altered, [document]) == ()
    (kept,) = match_quotes(f'"{text.replace("last keeper", "very last keeper")}"', [document])
    assert kept.place is not None


def test_a_similar_sentence_shows_the_documents_own_words() -> None:
    document = Document(
        "rock", (SourceFile("rock.md", (Span("The tower was designed by Eleanor Voss, a bridge engineer.", line=1),)),)
    )
    (quote,) = match_quotes('"The tower was built by Eleanor Voss, a bridge engineer."', [document])
    assert quote.score < 1.0
    assert quote.found == "The tower was designed by Eleanor Voss, a bridge engineer"
    (absent,) = match_quotes('"The keepers drank nothing but tea."', [document])
    assert (absent.place, absent.found) == (None, None)


def test_an_unquoted_sentence_with_another_ending_has_no_place() -> None:
    line = "The quick brown fox jumps over dog seven."
    document = Document("fox", (SourceFile("fox.txt", (Span(line, line=1),)),))
    assert match_quotes("The quick brown fox jumped over the fence.", [document]) == ()
    (kept,) = match_quotes(line, [document])
    assert kept.found == line.rstrip(".")
