"""Every RULER task: the answer is in the text as the task says, the length is kept, the seed decides everything."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

import pytest
from byte_engine import make_tokenizer

from salalocal.errors import InvalidRequest
from salalocal.evaluate.ruler.aggregation import CODED_FILLER
from salalocal.evaluate.ruler.sample import Growing, Measure, Sample, grow
from salalocal.evaluate.ruler.tasks import SINGLE_NEEDLE, TASKS, check_fits, choose_tasks, make_sample
from salalocal.evaluate.words import distinct_pairs
from salalocal.tokenizer import Message

LENGTH = 24576
NEEDLES = [task for task in TASKS if task.startswith("niah")]


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    def tokens(sample: Sample) -> int:
        text = f"{sample.instruction}\n{sample.context}\n{sample.question}"
        prompt = tokenizer.encode_prompt([Message("user", text)]).ids
        return len(prompt) + len(tokenizer.encode_text(sample.answer_prefix)) + sample.answer_tokens

    return tokens


@pytest.mark.parametrize("length", [LENGTH, 65536])
@pytest.mark.parametrize("task", TASKS)
def test_length_is_kept_and_never_passed(task: str, length: int, measure: Measure) -> None:
    tokens = measure(make_sample(task, length, 0, 1, measure))
    assert 0.98 * length <= tokens <= length


@pytest.mark.parametrize("task", TASKS)
def test_the_seed_decides_everything(task: str, measure: Measure) -> None:
    sample = make_sample(task, LENGTH, 2, 1, measure)
    assert make_sample(task, LENGTH, 2, 1, measure) == sample
    assert make_sample(task, LENGTH, 3, 1, measure).context != sample.context
    assert make_sample(task, LENGTH, 2, 2, measure).context != sample.context


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_in_the_text_and_not_given_away(task: str, measure: Measure) -> None:
    sample = make_sample(task, LENGTH, 0, 1, measure)
    around = sample.instruction + sample.question + sample.answer_prefix
    for answer in sample.answers:
        assert answer in sample.context
        assert answer not in around
    assert sample.match == ("part" if task.startswith("qa") else "all")


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_stand_under_the_keys_asked_for(task: str, measure: Measure) -> None:
    sample = make_sample(task, LENGTH, 0, 1, measure)
    hidden = re.findall(r"A secret \w+ kept for (\S+) is: (\S+)\.", sample.context)
    asked = re.search(r"kept for (.*) in the text", sample.question)[1].replace(" and ", ", ").split(", ")
    assert {value for key, value in hidden if key in asked} == set(sample.answers)
    assert len({value for _, value in hidden}) == len(hidden)
    needles = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4}.get(task, 1)
    if task in ("niah_multikey_2", "niah_multikey_3"):
        assert len(hidden) > 50
        assert len(re.sub(r"A secret \w+ kept for \S+ is: \S+\.\s*", "", sample.context)) == 0
    else:
        assert len(hidden) == needles
    assert len(sample.answers) == (4 if task in ("niah_multivalue", "niah_multiquery") else 1)
    assert len(asked) == (4 if task == "niah_multiquery" else 1)


@pytest.mark.parametrize("task", SINGLE_NEEDLE)
def test_depths_go_through_all_tenths(task: str, measure: Measure) -> None:
    for index in range(10):
        sample = make_sample(task, LENGTH, index, 1, measure)
        at = sample.context.index(sample.answers[0]) / len(sample.context)
        assert sample.depth == pytest.approx(at, abs=0.01)
        assert index / 10 <= sample.depth < (index + 1) / 10


def test_variables_hang_together(measure: Measure) -> None:
    sample = make_sample("vt", LENGTH, 0, 1, measure)
    value = re.search(r"the value (\d+)", sample.question)[1]
    holding = {value}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", sample.context):
        if source in holding:
            holding.add(name)
    assert holding - {value} == set(sample.answers)
    assert len(sample.answers) == 5


def test_common_words_are_the_commonest(measure: Measure) -> None:
    sample = make_sample("cwe", LENGTH, 0, 1, measure)
    counts = Counter(re.findall(r"\d+\. (\S+)", sample.context))
    assert {word for word, _ in counts.most_common(10)} == set(sample.answers)
    assert {counts[word] for word in sample.answers} == {30}
    assert {count for word, count in counts.items() if word not in sample.answers} == {3}
    assert "1. " in sample.instruction  # a solved example comes first


def test_coded_words_fall_with_the_square_of_their_rank(measure: Measure) -> None:
    sample = make_sample("fwe", LENGTH, 0, 1, measure)
    counts = Counter(sample.context.split()).most_common()
    assert counts[0][0] == CODED_FILLER
    assert tuple(word for word, _ in counts[1:4]) == sample.answers
    assert counts[3][1] > counts[4][1]
    assert counts[1][1] == pytest.approx(counts[0][1] / 4, rel=0.05)


def test_questions_are_answered_by_one_paragraph(measure: Measure) -> None:
    sample = make_sample("qa_1", LENGTH, 0, 1, measure)
    paragraphs = re.split(r"Document \d+:\n", sample.context)[1:]
    assert len(paragraphs) > 20
    assert sum(sample.answers[0] in paragraph for paragraph in paragraphs) == 1


def test_two_steps_lead_to_the_answer(measure: Measure) -> None:
    sample = make_sample("qa_2", LENGTH, 0, 1, measure)
    works = re.search(r"founder of (.*) born", sample.question)[1]
    (paragraph,) = [part for part in sample.context.split("\n\n") if works in part.replace("The ", "the ")]
    founder = re.search(r"founded by (\w+ \w+)\.", paragraph)[1]
    assert f"{founder} was born in {sample.answers[0]} in" in sample.context


def test_too_short_a_length_is_refused_by_name(measure: Measure) -> None:
    for act in (lambda: make_sample("cwe", 1024, 0, 1, measure), lambda: check_fits("cwe", 1024, 1, measure)):
        with pytest.raises(InvalidRequest, match=r"cwe.*at least [\d,]+ tokens and 1,024"):
            act()


def test_tasks_are_chosen_by_name() -> None:
    assert len(choose_tasks([])) == 13
    assert choose_tasks(["vt", "niah_single_1"]) == ("niah_single_1", "vt")
    with pytest.raises(InvalidRequest, match=r"no task 'niah'.*niah_single_1"):
        choose_tasks(["niah"])


@pytest.mark.parametrize("per_unit", [1, 7, 900])
def test_growing_stops_one_unit_short_at_the_latest(per_unit: int) -> None:
    def build(units: int) -> Sample:
        return Sample("", "x" * (units * per_unit), "", "", ("x",), "all", 0)

    sample = grow(Growing(build, least=1), 100_000, lambda sample: len(sample.context))
    assert 100_000 - max(per_unit, 200) <= len(sample.context) <= 100_000


def test_pairs_are_distinct_and_many() -> None:
    drawn = distinct_pairs(Random(1), 120_000)
    assert len(set(drawn)) == 120_000
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", word) for word in drawn)
    with pytest.raises(InvalidRequest, match="different words"):
        distinct_pairs(Random(1), 1_000_000)
