"""Attention per token into a document of the sentences around it, over real tokenizers."""

from __future__ import annotations

import numpy as np
import pytest
from looking import AT, Reading, document

from salalocal.documents import Span
from salalocal.evidence import excerpts
from salalocal.evidence.read_passages import WINDOW_TOKENS
from salalocal.tokenizer import Tokenizer

SENTENCES = [f"Sentence number {number} is about the {word} and says little else, as most of them do.\n"
             for number, word in enumerate(["mill", "bridge", "ferry", "tower", "well", "barn"] * 20)]  # fmt: skip


@pytest.fixture
def reading(tokenizer: Tokenizer) -> Reading:
    pages = (Span("First page. It is short.", page=1), Span("Second page. It says where the key is.", page=2))
    return Reading(tokenizer, document(**{"a.txt": "".join(SENTENCES), "b.pdf": pages}))


def test_nothing_looked_at_is_no_document(reading: Reading) -> None:
    assert excerpts(reading.mass, reading.files, 2048) is None


def test_whole_sentences_in_their_order_with_their_places(reading: Reading) -> None:
    reading.look("Sentence number 70 is about", 2.0)
    reading.look("number 7 is", 1.0)
    reading.look("the key", 1.0, file=1, span=1)
    found = excerpts(reading.mass, reading.files, 3 * WINDOW_TOKENS)
    assert found is not None
    assert [file.path for file in found.files] == ["a.txt", "b.pdf"]
    first, second = found.files
    places = [("".join(SENTENCES).index(span.text.strip()), span.line) for span in first.spans]
    assert places == sorted(places)
    for span in first.spans:
        lines = span.text.strip().split("\n")
        assert span.line is not None
        assert [line + "\n" for line in lines] == SENTENCES[span.line - 1 : span.line - 1 + len(lines)]
    assert any(SENTENCES[70] in span.text for span in first.spans)
    assert any(SENTENCES[7] in span.text for span in first.spans)
    assert [(span.page, span.text.strip()) for span in second.spans][-1] == (
        2,
        "Second page. It says where the key is.",
    )


def test_the_most_attention_comes_first_where_the_room_is_small(reading: Reading) -> None:
    reading.look("number 7 is", 1.0)
    reading.look("number 70 is", 2.0)
    found = excerpts(reading.mass, reading.files, WINDOW_TOKENS)
    assert found is not None
    text = "".join(span.text for span in found.files[0].spans)
    assert "number 70 is" in text
    assert "number 7 is" not in text
    assert len(text) < 3 * len("".join(SENTENCES)) / 10


def test_stretches_that_touch_are_one(reading: Reading) -> None:
    file = reading.files[0]
    reading.mass[file.start + file.ends[0] : file.start + file.ends[1]] = 1.0
    found = excerpts(reading.mass, reading.files, 1 << 16)
    assert found is not None
    (span,) = found.files[0].spans
    assert span.text.strip() == "".join(SENTENCES).strip()
    assert span.line == 1


def test_what_is_no_document_is_left_out(reading: Reading) -> None:
    mass = np.zeros_like(reading.mass)
    mass[:AT] = 1.0
    mass[reading.files[0].start : reading.files[0].start + reading.files[0].ends[0]] = 1.0
    assert excerpts(mass, reading.files, 2048) is None
