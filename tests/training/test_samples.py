"""Generated sequences: answers stand where they are said to stand, and held-out wordings stay out of training."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from salalocal.training import code_facts, events
from salalocal.training.feed import make_batch
from salalocal.training.filler import Corpus
from salalocal.training.lexicon import Lexicon
from salalocal.training.passages import Kind, find_passages
from salalocal.training.relations import relations
from salalocal.training.samples import ANSWER, Sampler, SampleShape, Task
from salalocal.training.scenes import draw_scene
from salalocal.training.statements import ABSENT_ANSWER, Split, split_of

SHAPES = {
    "512": SampleShape(512, 7, 0.36, 48, 16),
    "2048": SampleShape(2048, 26, 0.32, 160, 48),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("split", Split)
def test_every_answer_token_is_a_copy_of_its_source(corpus: Corpus, shape: SampleShape, split: Split) -> None:
    sampler = Sampler(corpus, np.random.default_rng(1), split)
    pairs = 0
    for _ in range(6):
        sample = sampler.sample(shape)
        assert sample.token_ids.shape == (shape.tokens + 1,)
        for query, source in zip(sample.query_positions, sample.source_positions, strict=True):
            if query >= 0:
                assert sample.token_ids[query + 1] == sample.token_ids[source]
                assert source < sample.document_end <= query
                assert sample.roles[query] == ANSWER
                pairs += 1
    assert pairs > 50


def test_where_room_is_short_the_first_tokens_of_answers_are_kept(corpus: Corpus) -> None:
    sampler = Sampler(corpus, np.random.default_rng(4))
    for _ in range(4):
        sample = sampler.sample(SampleShape(2048, 26, 0.32, 6, 48))
        firsts = {low for low, _, task in sample.questions.tolist() if low >= 0 and task != Task.ABSENT}
        kept = set(sample.query_positions.tolist())
        assert len(firsts) >= 6
        assert kept <= firsts


def test_far_tokens_are_those_of_the_documents_that_no_answer_stands_near(corpus: Corpus) -> None:
    sampler = Sampler(corpus, np.random.default_rng(3))
    for _ in range(4):
        sample = sampler.sample(SHAPES["2048"])
        assert not sample.far[sample.document_end :].any()
        assert 0 < sample.far.mean() < 1
        assert 0 <= sample.crowding <= 1
        for source in sample.source_positions[sample.source_positions >= 0]:
            assert not sample.far[max(0, source - 20) : source + 20].any()


def test_answers_are_in_the_documents_and_absent_ones_say_so(corpus: Corpus) -> None:
    sampler = Sampler(corpus, np.random.default_rng(2))
    tasks = set()
    for _ in range(60):
        sample = sampler.sample(SHAPES["2048"])
        documents = corpus.tokenizer.decode(sample.token_ids[: sample.document_end].tolist())
        for low, high, task in sample.questions:
            if low < 0:
                break
            tasks.add(Task(int(task)))
            answer = corpus.tokenizer.decode(sample.token_ids[low + 1 : high].tolist())
            if task == Task.ABSENT:
                assert answer == f" {ABSENT_ANSWER}"
            else:
                assert all(line in documents for line in answer.split("\n"))
    assert tasks >= set(Task) - {Task.PASSAGE}


def test_answer_spans_begin_and_end_with_words() -> None:
    for seed in range(20):
        scene = draw_scene(Lexicon(np.random.default_rng(seed)), Split.TRAINED, 30)
        for ask, where in scene.asks:
            for (low, high), index in zip(ask.spans, where, strict=True):
                value = scene.statements[index].text[low:high]
                assert value.strip() == value
                assert value


def test_passages_answer_with_the_words_of_the_text() -> None:
    text = (
        "The scheduler returns a list of waiting jobs. If the queue is empty, the worker sleeps for a second. "
        "Nobody crossed the bridge because the planks were rotten.\n"
        "LIMIT = 300\ndef collect(first):\nArea of the lake: 643 sq km\n"
    )
    draws = (find_passages(text, np.random.default_rng(seed)) for seed in range(30))
    found = {(p.kind, p.key): text[p.start : p.end] for passages in draws for p in passages}
    assert found[Kind.ASK, "What does the scheduler return?"] == "a list of waiting jobs"
    assert found[Kind.ASK, "What happens if the queue is empty?"] == "the worker sleeps for a second"
    assert found[Kind.ASK, "Why is it that nobody crossed the bridge?"] == "because the planks were rotten"
    assert found[Kind.VALUE, "LIMIT"] == "300"
    assert found[Kind.DEFINED, "collect"] == "def collect(first):"
    assert found[Kind.LABEL, "Area of the lake"] == "643 sq km"


def test_planted_keys_are_unique_and_absent_keys_are_not_planted() -> None:
    for seed in range(20):
        scene = draw_scene(Lexicon(np.random.default_rng(seed)), Split.TRAINED, 40)
        per_statement: dict[tuple[str, ...], set[int]] = {}
        for ask, where in scene.asks:
            per_statement.setdefault(ask.key, set()).add(where[0])
        assert all(len(places) == 1 for places in per_statement.values())
        assert not per_statement.keys() & {ask.key for ask in scene.absent}


@pytest.mark.parametrize("split", Split)
def test_a_split_draws_only_its_own_wordings(split: Split) -> None:
    known = {relation.identity: relation for relation in relations()}
    verbs_seen = 0
    for seed in range(60):
        scene = draw_scene(Lexicon(np.random.default_rng(seed)), split, 30)
        for ask in [ask for ask, _ in scene.asks] + scene.absent:
            parts = ask.frame.split("/")
            if parts[0] in known:
                pair = (int(parts[1][1:]), int(parts[2][1:]))
                assert pair in known[parts[0]].pairs(split)
            elif parts[0] == "code":
                assert split_of("code", parts[1], parts[2]) is split
            elif parts[0] == "event":
                verbs_seen += 1
                flags = [split_of("event", "F", parts[1][1:]), split_of("event", "Q", parts[2], parts[3])]
                if split is Split.TRAINED:
                    assert Split.UNSEEN not in flags
    assert verbs_seen > 20


def test_both_splits_have_wordings_of_every_kind() -> None:
    for questions in (code_facts._VALUE_QUESTIONS, code_facts._DEFINITION_QUESTIONS):
        assert len(questions) > 8
    frames = {split: sum(len(relation.pairs(split)) for relation in relations()) for split in Split}
    assert frames[Split.TRAINED] > 2000
    assert frames[Split.UNSEEN] > 300
    assert len(events.verb_groups()) > 60


def test_the_split_is_the_same_on_every_machine() -> None:
    assert split_of("a", "b") is (Split.UNSEEN if zlib.crc32(b"a/b") % 12 == 0 else Split.TRAINED)


def test_a_batch_depends_on_its_seeds_alone(corpus: Corpus) -> None:
    first, second = (make_batch(corpus, SHAPES["512"], 2, (1, 0, 5)) for _ in range(2))
    other = make_batch(corpus, SHAPES["512"], 2, (1, 0, 6))
    assert np.array_equal(first.token_ids, second.token_ids)
    assert not np.array_equal(first.token_ids, other.token_ids)
