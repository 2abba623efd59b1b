"""Planted texts: length, places of the facts in characters and tokens, and which questions share one."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from byte_engine import make_tokenizer

from salalocal.errors import InvalidRequest
from salalocal.evaluate.fact_rows import FactRow
from salalocal.evaluate.filler import Filler
from salalocal.evaluate.planting import FACT_SHARE, Planted, make_batches, plant
from salalocal.evaluate.scoring import normalize
from salalocal.tokenizer import Message, Tokenizer

FACTS = ["The quay of Tolm is 340 metres long.", "set(HULL_PLATES 47)", "def tide(x):\n    return x + 3", "Who knows?"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def text_of(planted: Planted) -> str:
    return "".join(span.text for span in planted.document.files[0].spans)


@pytest.mark.parametrize("length", [4096, 16384])
def test_a_text_has_the_length_and_every_fact_once(tokenizer: Tokenizer, length: int) -> None:
    planted = plant(FACTS, length, tokenizer, "seed")
    prompt = tokenizer.encode_prompt([Message("user", "How long?")], [planted.document])
    assert planted.tokens == prompt.stable_tokens
    assert length - 8 <= planted.tokens <= length
    assert [text_of(planted).count(fact) for fact in FACTS] == [1] * len(FACTS)


def test_the_tokens_said_to_hold_a_fact_do(tokenizer: Tokenizer) -> None:
    planted = plant(FACTS, 8192, tokenizer, "seed")
    ids = tokenizer.encode_prompt([Message("user", "?")], [planted.document]).ids
    for fact, place in planted.facts.items():
        assert tokenizer.decode(ids[place.start : place.end]).strip() == fact
        assert place.depth == place.start / planted.tokens


def test_a_fact_within_another_keeps_its_own_place(tokenizer: Tokenizer) -> None:
    facts = ["It is here.", "Ann said: It is here.", "Nobody knew. Ann said: It is here. So it was."]
    for seed in range(8):
        planted = plant(facts, 1024, tokenizer, f"{seed}")
        places = sorted((place.start, place.end) for place in planted.facts.values())
        assert all(one[1] <= other[0] for one, other in pairwise(places))


def test_facts_stand_between_sentences_and_lines_of_code_alone(tokenizer: Tokenizer) -> None:
    facts = [f"Fact number {number} is this." for number in range(30)] + FACTS
    text = text_of(plant(facts, 16384, tokenizer, "seed"))
    for fact in facts:
        before, after = text.split(fact)
        inline = fact.endswith((".", "?")) and "\n" not in fact
        assert re.search(r"(^|[.!?:] |\n)$" if inline else r"(^|\n)$", before)
        assert after.startswith((" ", "\n") if inline else "\n")
        # No fact beside another.
        assert not any(before.endswith(other + end) for other in facts for end in (" ", "\n"))


def test_depths_are_spread_and_repeatable(tokenizer: Tokenizer) -> None:
    facts = [f"Fact number {number} is this." for number in range(60)]
    planted = plant(facts, 32768, tokenizer, "seed")
    depths = [place.depth for place in planted.facts.values()]
    assert min(depths) < 0.15
    assert max(depths) > 0.85
    assert 0.35 < sum(depths) / len(depths) < 0.65
    assert plant(facts, 32768, tokenizer, "seed") == planted
    assert plant(facts, 32768, tokenizer, "other").facts != planted.facts


def test_a_text_too_short_for_its_facts_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="greater length"):
        plant([f"Fact number {number} is this and more." for number in range(60)], 1024, tokenizer, "seed")


def test_batches_hold_every_row_once_within_their_share(tokenizer: Tokenizer) -> None:
    rows = [FactRow(n, f"What is {n}?", f"The number {n} is called {n * n}.", (str(n * n),)) for n in range(80)]
    rows += [FactRow(100 + n, f"Who is {n}?") for n in range(20)]
    batches = make_batches(rows, 4096, tokenizer, seed=1)
    assert sorted(row.line for batch in batches for row in batch.rows) == [row.line for row in rows]
    assert len(batches) > 1
    for batch in batches:
        assert sum(batch.facts.values()) <= FACT_SHARE * 4096
        assert any(row.fact is None for row in batch.rows)
    assert len(make_batches(rows, 1 << 20, tokenizer, seed=1)) == 1


def test_a_question_with_two_answers_is_asked_of_two_texts(tokenizer: Tokenizer) -> None:
    rows = [
        FactRow(1, "Where is it?", "It is here.", ("here",)),
        FactRow(2, "where is it", "It is there.", ("there",)),
        FactRow(3, "Where is it?"),
        FactRow(4, "What is here?", "It is here.", ("it",)),
    ]
    batches = make_batches(rows, 1 << 20, tokenizer, seed=1)
    assert len(batches) == 3
    # Nowhere are there two different rows to one question.
    for batch in batches:
        assert len({normalize(row.question) for row in batch.rows}) == len(batch.rows)
    assert sorted(row.line for batch in batches for row in batch.rows) == [1, 2, 3, 4]


def test_a_fact_asked_about_twice_is_planted_once(tokenizer: Tokenizer) -> None:
    fact = "Ann met Ben."
    rows = [FactRow(1, "Whom did Ann meet?", fact, ("Ben",)), FactRow(2, "Who met Ben?", fact, ("Ann",))]
    (batch,) = make_batches(rows, 4096, tokenizer, seed=1)
    assert list(batch.facts) == [fact]
    assert len(batch.rows) == 2


def test_a_fact_longer_than_half_the_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="line 9"):
        make_batches([FactRow(9, "What?", "stone " * 3000, ("x",))], 4096, tokenizer, seed=1)


def test_filler_is_repeatable_and_does_not_repeat_itself() -> None:
    one, same, other = Filler("a"), Filler("a"), Filler("b")
    sentences = [one.sentence() for _ in range(2000)]
    assert sentences == [same.sentence() for _ in range(2000)]
    assert sentences != [other.sentence() for _ in range(2000)]
    assert len(set(sentences)) > 1900
    assert all(sentence[0].isupper() and sentence.endswith(".") and "{" not in sentence for sentence in sentences)


def test_making_texts_and_tasks_needs_no_torch() -> None:
    modules = "salalocal.evaluate.planting, salalocal.evaluate.ruler.tasks, salalocal.cli.evaluate"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path.cwd().root, check=False).returncode == 0
