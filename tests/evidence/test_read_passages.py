"""Attention per token into sentences with their places, over real tokenizers.

Documents are given as lists of sentences, so that what a sentence is was decided here; and a token's character is
found by decoding what precedes it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from looking import AT, Reading, document

from salalocal.documents import Place, Span
from salalocal.evidence import ReadPassage, match_quotes, read_passages
from salalocal.evidence.read_passages import LEAST_SHARE, LONGEST_PASSAGE, MOST_PASSAGES
from salalocal.tokenizer import Tokenizer


def expected(reading: Reading, sentences: Sequence[Sequence[Sequence[str]]]) -> list[tuple[str, float]]:
    """Of every file's spans' sentences those that are shown, and their shares: the definition, written out."""
    total = sum(reading.mass[one.start : one.start + one.ends[-1]].sum() for one in reading.files)
    shares = []
    for file, spans in enumerate(sentences):
        for span, parts in enumerate(spans):
            low = 0
            tokens = reading.tokens(file, span)
            for part in parts:
                share = sum(reading.mass[at] for at, char in tokens if low <= char < low + len(part)) / total
                shares.append((" ".join(part.split()), share))
                low += len(part)
            assert low == len(reading.files[file].spans[span].text)
    shown = [(text, share) for text, share in shares if text and share >= LEAST_SHARE]
    return sorted(shown, key=lambda one: -one[1])[:MOST_PASSAGES]


def lines(passages: Sequence[ReadPassage]) -> list[tuple[str, Place]]:
    return [(passage.text, passage.place) for passage in passages]


NOTE = (
    "# The light\n\n"
    "The tower was built in 1871. It stands on a rock! Who paid for it? “The Crown paid.” So it is said.\n"
    "The last keeper left on\n30 June 1984. Since then it works by itself.\n\n"
    "- coal and oil\n- 3 lamps of glass\n"
)


@pytest.mark.parametrize(
    ("words", "sentence", "line"),
    [
        ("light", "# The light", 1),
        ("built in 1871.", "The tower was built in 1871.", 3),
        ("It stands", "It stands on a rock!", 3),
        ("paid for it?", "Who paid for it?", 3),
        ("“The Crown paid.”", "“The Crown paid.”", 3),
        ("So it", "So it is said.", 3),
        ("last keeper", "The last keeper left on 30 June 1984.", 4),
        ("30 June", "The last keeper left on 30 June 1984.", 4),
        ("by itself.", "Since then it works by itself.", 5),
        ("oil", "- coal and oil", 7),
        ("glass", "- 3 lamps of glass", 8),
    ],
)
def test_a_sentence_is_given_with_its_line(tokenizer: Tokenizer, words: str, sentence: str, line: int) -> None:
    reading = Reading(tokenizer, document(**{"rock.md": NOTE}))
    reading.look(words)
    assert reading.found() == (ReadPassage(sentence, Place("rock.md", None, line), pytest.approx(1.0)),)


def test_every_sentence_of_a_long_text_also_over_window_edges(tokenizer: Tokenizer) -> None:
    sentences = [f"Lamp {n} burned {n * 7} litres of oil in its winter. " for n in range(60)]
    over_an_edge = 0
    for n, sentence in enumerate(sentences):
        reading = Reading(tokenizer, document(a="".join(sentences)))
        positions = reading.look(sentence)
        first = reading.files[0].start + reading.files[0].ends[0]
        over_an_edge += (positions[0] - first) // 64 != (positions[-1] - first) // 64
        ((text, share),) = [(passage.text, passage.share) for passage in reading.found()]
        assert (text, share) == (sentence.strip(), pytest.approx(1.0)), n
    assert over_an_edge > 5


def test_a_sentence_over_a_page_edge_is_given_in_both_parts(tokenizer: Tokenizer) -> None:
    pages = (Span("It ends. The wick of the lamp was\n", page=3), Span("trimmed by hand. Then it rained.\n", page=4))
    reading = Reading(tokenizer, document(**{"book.pdf": pages}))
    reading.look("The wick of the lamp was", 2.0)
    reading.look("trimmed by hand.", 1.0, span=1)
    found = reading.found()
    assert lines(found) == [
        ("The wick of the lamp was", Place("book.pdf", 3)),
        ("trimmed by hand.", Place("book.pdf", 4)),
    ]
    assert [passage.share for passage in found] == pytest.approx([2 / 3, 1 / 3])


def test_several_files_and_documents(tokenizer: Tokenizer) -> None:
    one = document("one", **{"readme": "Alpha is first. Beta follows.", "b/two.txt": "\nGamma is here.\nDelta too."})
    two = document("two", readme="Epsilon came late. Zeta never came.")
    reading = Reading(tokenizer, one, two)
    reading.look("Beta follows.", 1.0)
    reading.look("Gamma", 2.0, file=1)
    reading.look("Epsilon came", 5.0, file=2)
    found = reading.found()
    assert lines(found) == [
        ("Epsilon came late.", Place("two/readme", None, 1)),
        ("Gamma is here.", Place("b/two.txt", None, 2)),
        ("Beta follows.", Place("one/readme", None, 1)),
    ]
    assert [passage.share for passage in found] == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    # Where a quote stands has the same name.
    (quote,) = match_quotes('"Epsilon came late"', [one, two])
    assert quote.place == found[0].place


def test_a_path_line_is_never_shown(tokenizer: Tokenizer) -> None:
    reading = Reading(tokenizer, document(**{"a.txt": "One is here.", "b.txt": "Two is there."}))
    for file in reading.files:
        reading.mass[file.start : file.start + file.ends[0]] = 3.0
    assert reading.found() == ()
    before = reading.mass.sum() - reading.mass[:AT].sum() - 9 * 50
    reading.look("Two", before, file=1)
    assert reading.found() == (ReadPassage("Two is there.", Place("b.txt", None, 1), pytest.approx(0.5)),)


SENTENCES = [
    [["Ada drew the plans.\n", "Who was she?  ", "Nobody knows!\n\n", "1871 was a wet year. ", "The sea rose."]],
    [["第一行没有什么。", "灯塔建于一八七一年,由一位工程师建造。\n", "他说：“灯还亮着吗？！”", "没有人回答！！\n"]],
    [
        ["Zoë a bu un café à l’été. ", "C’était né d’un œuf. ", "👩‍👩‍👧‍👦 est là. ", "🏳️‍🌈🏳️‍🌈 aussi! "],
        ["\n\n", "Страница два. ", "Она короткая.\n"],
    ],
]


@pytest.mark.parametrize("seed", range(12))
def test_random_attention_is_shared_out_by_the_definition(tokenizer: Tokenizer, seed: int) -> None:
    files = {f"{n}.txt": tuple(Span("".join(parts)) for parts in spans) for n, spans in enumerate(SENTENCES)}
    reading = Reading(tokenizer, document(**files))
    generator = np.random.default_rng(seed)
    documents = slice(AT, len(reading.mass) - 9)
    # Most tokens get next to nothing, a few most.
    reading.mass[documents] = generator.random(len(reading.mass) - 9 - AT) ** (1 + 4 * seed)
    found = reading.found()
    wanted = expected(reading, SENTENCES)
    assert [passage.text for passage in found] == [text for text, _ in wanted]
    assert [passage.share for passage in found] == pytest.approx([share for _, share in wanted])
    assert 0 < sum(passage.share for passage in found) <= 1 + 1e-12


@pytest.mark.parametrize(
    "unit",
    [
        "灯塔建于{n}年，由一位工程师建造。",
        "Le café n° {n} brûla l’été où l’œuf naquit. ",
        "🙂🏳️‍🌈 {n} 👩‍👩‍👧‍👦 стоит там! ",
    ],
)
def test_characters_of_several_tokens(tokenizer: Tokenizer, unit: str) -> None:
    """Windows begin in the middle of characters, and a token says nothing about where it stands."""
    sentences = [unit.format(n=100 + n) for n in range(24)]
    text = "".join(sentences)
    assert len(tokenizer.encode_text(text)) > 6 * 64
    for n in range(0, 24, 5):
        reading = Reading(tokenizer, document(a=text))
        reading.look(sentences[n])
        (passage,) = reading.found()
        assert (passage.text, passage.share) == (sentences[n].strip(), pytest.approx(1.0))


def test_a_long_sentence_is_shortened(tokenizer: Tokenizer) -> None:
    sentence = "The keeper " + "and his dog and " * 50 + "their cat went home."
    reading = Reading(tokenizer, document(a=f"It was late.\n{sentence} They slept.\n"))
    positions = reading.look("their cat")
    reading.mass[positions[0] - 300] += 1.0  # in its beginning, in another window
    ((text, place),) = lines(reading.found())
    assert place == Place("a", None, 2)
    assert len(text) <= LONGEST_PASSAGE
    assert text.endswith("…")
    assert sentence.startswith(text[:-1])
    assert len(text) > LONGEST_PASSAGE - 20


def test_white_space_in_a_passage_is_one_blank(tokenizer: Tokenizer) -> None:
    reading = Reading(tokenizer, document(a="First.\n  The  long\n\tway \u00a0 home.\n"))
    reading.look("long")
    assert lines(reading.found()) == [("The long way home.", Place("a", None, 2))]


def test_code_without_full_stops(tokenizer: Tokenizer) -> None:
    """Functions and paragraphs are told apart; a long run of lines without an end is shown by its lines."""
    code = "import os\n\ndef f(a):\n    return a\ndef g(b):\n    c = b + 1\n    return c\n"
    reading = Reading(tokenizer, document(**{"f.py": code}))
    reading.look("b + 1")
    assert lines(reading.found()) == [("def g(b): c = b + 1 return c", Place("f.py", None, 5))]
    rows = [f"value_{n} = compute(a[{n}], {n * n})" for n in range(400)]
    for n in (0, 1, 63, 200, 201, 398, 399):
        reading = Reading(tokenizer, document(**{"table.py": "\n".join(rows) + "\n"}))
        reading.look(rows[n])
        assert lines(reading.found()) == [(rows[n], Place("table.py", None, n + 1))]


@pytest.mark.parametrize("blank", [" ", ""])
def test_a_line_without_any_end_is_shown_where_it_was_read(tokenizer: Tokenizer, blank: str) -> None:
    words = [f"w{n}x" for n in range(3000)]
    text = "x\n" + blank.join(words) + "\nIt ends."
    for n in (0, 7, 400, 1100, 2990):
        reading = Reading(tokenizer, document(a=text))
        reading.look(words[n])
        passages = reading.found()
        assert sum(passage.share for passage in passages) == pytest.approx(1.0)
        shown = blank.join(passage.text for passage in sorted(passages, key=lambda one: text.index(one.text)))
        assert words[n] in shown
        assert all(passage.place == Place("a", None, 2) for passage in passages)
        assert all(len(passage.text) <= LONGEST_PASSAGE and passage.text in text for passage in passages)
        # The end of the same piece, which other windows of tokens hold, belongs to the same passage.
        begin = text.index(passages[0].text)
        for position, char in reading.tokens(0, 0):
            if char in (begin, begin + len(passages[0].text) - 1):
                reading.mass[position] += 1.0
        assert passages[0].text in [passage.text for passage in reading.found()]
        assert len(reading.found()) == len(passages)


def test_empty_and_blank_spans(tokenizer: Tokenizer) -> None:
    spans = (Span("", page=1), Span("\n \n", page=2), Span("Here it is.\n", page=3), Span("", page=4))
    reading = Reading(tokenizer, document(a=spans, b="", c=()))
    documents = slice(AT, len(reading.mass) - 9)
    reading.mass[documents] = 1.0
    total = reading.mass[documents].sum()
    (passage,) = reading.found()
    assert (passage.text, passage.place) == ("Here it is.", Place("a", 3))
    assert passage.share == pytest.approx(len(reading.tokens(0, 2)) / total)


def test_blank_lines_at_the_top_are_not_shown(tokenizer: Tokenizer) -> None:
    reading = Reading(tokenizer, document(a="\n\n\n  \nThe text begins here. It goes on."))
    for position, _ in reading.tokens(0, 0)[:2]:
        reading.mass[position] = 5.0
    assert reading.found() == ()
    reading.look("It goes on.", 10.0)
    assert reading.found() == (ReadPassage("It goes on.", Place("a", None, 5), pytest.approx(0.5)),)


def test_little_attention_shows_nothing(tokenizer: Tokenizer) -> None:
    sentences = [f"Number {n} is here. " for n in range(9)]
    reading = Reading(tokenizer, document(a="".join(sentences)))
    assert reading.found() == (), "no attention at all"
    for n, sentence in enumerate(sentences):
        reading.look(sentence.strip(), (9, 30, 8, 3.99, 7, 10, 6, 5, 21)[n])
    assert [passage.text for passage in reading.found()] == [sentences[n].strip() for n in (1, 8, 5, 0)]
    reading.mass[:] = 0.0
    for n, weight in ((0, 3.9), (1, 4.1), (2, 92)):
        reading.look(sentences[n].strip(), weight)
    assert [passage.text for passage in reading.found()] == [sentences[n].strip() for n in (2, 1)]
    assert read_passages(np.ones(20), []) == ()


def test_it_stays_fast_in_a_book_of_one_span(tokenizer: Tokenizer) -> None:
    """Millions of characters in one file, read all over: neither the span nor the file is gone through per token."""
    text = "".join(f"Sentence {n} of this book says that {n * n} is a number.\n" for n in range(6000))
    reading = Reading(tokenizer, document(a=text))
    generator = random.Random(1)
    wanted = sorted(generator.sample(range(6000), 12))
    for place, n in enumerate(wanted):
        file = reading.files[0]
        start = text.index(f"Sentence {n} ")
        low = int(np.searchsorted(np.cumsum(file.characters[file.ends[0] :]), start + 10))
        reading.mass[file.start + file.ends[0] + low] = 20.0 - place
    found = reading.found()
    assert [passage.place.line for passage in found] == [n + 1 for n in wanted[:MOST_PASSAGES]]
    assert all(passage.text.startswith(f"Sentence {n} ") for passage, n in zip(found, wanted, strict=False))
