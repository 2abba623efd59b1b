"""Hits of answers are counted block by block, of every step but the first token, which the question chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

import salalocal
from salalocal.bench.hits import hit_row, read_questions
from salalocal.documents import Document, SourceFile, Span
from salalocal.errors import InvalidRequest

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCKS_OF_A_STEP = 3 * 2 * 96


def book(tokens: int) -> Document:
    """The beginning of a novel."""
    tokenizer = salalocal.load("salalocal-pocket", device="cpu").tokenizer
    text = (EXAMPLES / "northanger-abbey.txt").read_text("utf-8")[: 8 * tokens]
    return Document("book", (SourceFile("book.txt", (Span(tokenizer.decode(tokenizer.encode_text(text)[:tokens])),)),))


def test_every_block_of_every_step_is_counted() -> None:
    row = hit_row("salalocal-pocket", "cpu", 1.0, book(8150), ["Where was Mr. Allen ordered for his health?"])
    assert 8192 < row.tokens < 8256
    assert row.questions == 1
    assert row.steps >= 1
    assert row.times >= 1
    counted = row.first_hits + row.first_misses + row.hits + row.misses
    assert counted == row.steps * BLOCKS_OF_A_STEP
    assert row.first_misses > 0, "nothing is on the device at first"
    assert 0 < row.rate < 1


def test_a_short_book_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the model selects blocks from 8,192 on"):
        hit_row("salalocal-pocket", "cpu", 2.0, book(500), ["Who?"])


def test_questions_are_those_of_a_facts_file() -> None:
    questions = read_questions(EXAMPLES / "northanger-abbey.jsonl")
    assert len(questions) == 24
    assert questions[0].startswith("Where was Mr. Allen")
