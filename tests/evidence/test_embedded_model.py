"""Evidence on learned behaviour: what the embedded model answers right was read where the fact stands."""

from __future__ import annotations

from pathlib import Path

import pytest

import salalocal
from salalocal.engine.engine import Engine
from salalocal.evaluate.fact_rows import read_rows
from salalocal.evaluate.facts import evaluate_facts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return salalocal.load("salalocal-pocket", device="cpu")


def test_right_answers_were_read_from_the_block_of_their_fact(engine: Engine) -> None:
    """At 9K tokens every layer reads sparsely: of 141 blocks 96, so a selection by chance would miss a third."""
    rows = [row for row in read_rows(EXAMPLES / "facts.jsonl") if row.fact is not None][:26]
    (cell,) = evaluate_facts(engine, rows, [9216], seed=3, max_tokens=20)
    assert cell.answered.count >= len(rows) // 3
    assert cell.fact_blocks_read.of == cell.answered.count
    assert cell.fact_blocks_read.count == cell.fact_blocks_read.of


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("When did the last keeper leave Kestrel Rock?", "30 June 1984", "The last keeper left Kestrel Rock"),
        ("Who designed the lighthouse?", "Eleanor Voss", "The lighthouse was designed by Eleanor Voss"),
        ("How tall is the tower?", "41 metres", "It is 41 metres tall"),
    ],
)
def test_the_passage_read_most_is_the_one_that_answers(
    engine: Engine, question: str, answer: str, sentence: str
) -> None:
    document = salalocal.read(EXAMPLES / "kestrel-rock.pdf")
    said, evidence = "", None
    events = engine.chat(
        engine.new_session(), [salalocal.Message("user", question)], [document], salalocal.Sampling(max_tokens=20)
    )
    for event in events:
        if isinstance(event, salalocal.Token):
            said += event.text
        elif isinstance(event, salalocal.Evidence):
            evidence = event
    assert said.strip() == answer
    assert evidence is not None
    best = evidence.passages[0]
    assert sentence in best.text
    assert best.share > 0.4
    assert best.place.file == "kestrel-rock.pdf"


def test_what_is_not_there_is_said_not_to_be_there(engine: Engine) -> None:
    """Of the first questions without a fact in the file at least as many as are asked of the model at any length."""
    rows = read_rows(EXAMPLES / "facts.jsonl")
    absent = [row for row in rows if row.fact is None][:15]
    (cell,) = evaluate_facts(engine, [row for row in rows if row.fact is not None][:5] + absent, [4096], max_tokens=20)
    assert cell.absent_recognised.of == len(absent)
    assert cell.absent_recognised.count >= 0.8 * len(absent)
