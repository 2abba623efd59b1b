"""Facts from file to figures, over a tiny random model: sessions, forks and selections are real.

A random model answers nothing, so most tests let it read and step as it will, and put an answer in the place of its.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from byte_engine import make_engine

from salalocal.documents import Document
from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Token
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.errors import Cancelled, ContextTooLong
from salalocal.evaluate.fact_rows import FactRow
from salalocal.evaluate.facts import FactsCell, FactsProgress, evaluate_facts
from salalocal.evaluate.planting import Planted, plant
from salalocal.tokenizer import Message

ROWS = tuple(
    FactRow(n + 1, f"How long is quay {n}?", f"Quay {n} is {n * 17 + 3} metres long.", (f"{n * 17 + 3} metres",))
    for n in range(12)
) + tuple(FactRow(20 + n, f"Who owns quay {n}?") for n in range(4))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tmp_path_factory.mktemp("tiny"))


def answering(engine: Engine, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], str]) -> list[int]:
    """Makes the engine give `answer(prompt)`; returns what each question's session held when it was asked."""
    chat, held = engine.chat, list[int]()

    def instead(
        session: Session,
        messages: list[Message],
        documents: list[Document],
        sampling: Sampling,
        cancel: threading.Event | None = None,
    ) -> Iterator[object]:
        assert sampling.temperature == 0
        held.append(session.length)
        words = [answer(engine.tokenizer.decode(engine.tokenizer.encode_prompt(messages, documents).ids))]
        for event in chat(session, messages, documents, Sampling(max_tokens=2), cancel):
            if isinstance(event, Token):
                event = Token(event.id, words.pop() if words else "")
            yield event

    monkeypatch.setattr(engine, "chat", instead)
    return held


def knowing(prompt: str) -> str:
    """Answers right, in another case and with punctuation; the questions are the last line but one."""
    question = prompt.split("Question: ")[-1].split("?")[0]
    row = next(row for row in ROWS if row.question.startswith(question + "?"))
    assert (row.fact is not None) == (row.fact in prompt if row.fact else False), "the fact was not planted"
    return f" {row.answers[0].upper()}." if row.fact else " That is not in the text."


def test_right_answers_are_counted_and_traced(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    held = answering(engine, monkeypatch, knowing)
    (cell,) = evaluate_facts(engine, ROWS, [4096], seed=3)
    assert (cell.answered.count, cell.answered.of) == (12, 12)
    assert (cell.absent_recognised.count, cell.absent_recognised.of) == (4, 4)
    assert cell.false_alarms.count == 0
    # Read once per text, then only forks of it; and sparse, so that every right answer says what it read.
    assert set(held) <= {size for size in held if 4000 < size <= 4096}
    assert len(set(held)) <= cell.readings
    assert cell.fact_blocks_read.of == 12
    assert [one.row.line for one in cell.outcomes] == [row.line for row in ROWS]
    assert 0 < cell.reading_seconds < cell.seconds


def test_wrong_answers_and_false_alarms(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(prompt: str) -> str:
        number = int(prompt.split("quay ")[-1].split("?")[0])
        known = knowing(prompt)
        if "Who owns" in prompt.split("Question: ")[-1]:
            return known if number == 0 else "Ann"
        if number < 3:
            return "The text does not say."
        return f"It is {known}, I think" if number < 5 else "9999 metres" if number < 7 else known

    answering(engine, monkeypatch, answer)
    (cell,) = evaluate_facts(engine, ROWS, [4096])
    assert (cell.answered.count, cell.contained.count, cell.false_alarms.count) == (5, 7, 3)
    assert (cell.absent_recognised.count, cell.absent_recognised.of) == (1, 4)
    assert cell.fact_blocks_read.of == 5
    assert cell.answered.percent == pytest.approx(100 * 5 / 12)
    assert cell.outcomes[0].verdict == "not in the text"


def test_a_fact_is_read_where_its_blocks_are_selected(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly where one of them is among those of the last query, in a call that a token was drawn from."""
    texts, picked, chat = list[Planted](), dict[str, set[int]](), engine.chat

    def planting(*arguments: object) -> Planted:
        texts.append(plant(*arguments))
        return texts[-1]

    def watched(
        session: Session,
        messages: list[Message],
        documents: list[Document],
        sampling: Sampling,
        cancel: threading.Event | None = None,
    ) -> Iterator[object]:
        blocks: set[int] = set()
        for event in chat(session, messages, documents, sampling, cancel):
            if isinstance(event, Token | Done):
                for layer in engine.config.sparse_layers:
                    blocks.update(session.selected_blocks(layer)[:, -1].flatten().tolist())
            yield event
        picked[messages[0].content[:-1]] = blocks

    monkeypatch.setattr("salalocal.evaluate.facts.plant", planting)
    monkeypatch.setattr(engine, "chat", watched)
    (cell,) = evaluate_facts(engine, ROWS[:12], [2048], seed=1, max_tokens=3)
    places, size = {fact: place for text in texts for fact, place in text.facts.items()}, 4
    expected = [
        not picked[row.question[:-1]].isdisjoint(
            range(places[row.fact].start // size, (places[row.fact].end - 1) // size + 1)
        )
        for row in ROWS[:12]
    ]
    assert [outcome.read_fact for outcome in cell.outcomes] == expected
    assert set(expected) == {True, False}


def test_dense_answers_say_nothing_about_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 4}
    engine = make_engine(tmp_path, sparse_config={**sizes, "dense_len": 100_000})
    answering(engine, monkeypatch, knowing)
    (cell,) = evaluate_facts(engine, ROWS[:3], [1024])
    assert cell.answered.count == 3
    assert cell.fact_blocks_read.of == 0
    assert cell.fact_blocks_read.percent is None


def test_every_reading_is_sparse_from_the_length_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is read under the length of the whole prompt: it is just below `length`, and the prompt above it."""
    finals, prefill = list[int](), Session.prefill

    def watched(self: Session, token_ids: list[int], **options: object) -> object:
        if options.get("final_length") is not None:
            finals.append(options["final_length"])
        return prefill(self, token_ids, **options)

    monkeypatch.setattr(Session, "prefill", watched)
    evaluate_facts(engine, ROWS[:2], [2048], max_tokens=1)
    assert finals
    assert min(finals) >= 2048


def test_two_runs_are_equal_and_progress_is_told(engine: Engine) -> None:
    told, cells = list[FactsProgress](), list[FactsCell]()
    runs = [
        evaluate_facts(
            engine, ROWS[:4], [1024, 2048], seed=5, max_tokens=3, on_progress=told.append, on_cell=cells.append
        )
        for _ in range(2)
    ]
    assert [cell.outcomes for cell in runs[0]] == [cell.outcomes for cell in runs[1]]
    assert [cell.length for cell in cells] == [1024, 2048] * 2
    assert any(step.read is not None and step.read.done_tokens == step.read.total_tokens for step in told)
    assert "1K, text 1 of" in str(told[0])


def test_cancelling_while_reading_and_while_answering(engine: Engine) -> None:
    for stop_at in (0, 1):
        cancel, asked = threading.Event(), list[int]()

        def stop(
            progress: FactsProgress,
            stop_at: int = stop_at,
            cancel: threading.Event = cancel,
            asked: list[int] = asked,
        ) -> None:
            if progress.read is None:
                asked.append(progress.asked)
            if (progress.read is None) == bool(stop_at):
                cancel.set()

        with pytest.raises(Cancelled):
            # Longer than a chunk, so that there is a second one.
            evaluate_facts(engine, ROWS[:4], [4096], max_tokens=4, on_progress=stop, cancel=cancel)
        # The chunk after the first, or the second question, is not begun.
        assert len(asked) == stop_at


def test_a_length_beyond_the_memory_is_refused_before_reading(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "max_context_tokens", lambda: 5000)
    monkeypatch.setattr(engine, "new_session", lambda **_: pytest.fail("read something"))
    with pytest.raises(ContextTooLong, match=r"8K.*5,000 fit") as refused:
        evaluate_facts(engine, ROWS, [1024, 8192])
    assert refused.value.limit_tokens == 5000
