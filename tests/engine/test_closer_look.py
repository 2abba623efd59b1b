"""A closer look: long documents are answered from what stood out in them, and the session holds what it did before."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from byte_engine import make_engine

import salalocal
from salalocal.documents import Document, SourceFile, Span
from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Evidence, Token
from salalocal.engine.sampling import Sampling
from salalocal.errors import BadConfig, Cancelled
from salalocal.tokenizer import Message

QUESTION = Message("user", "What is kept under the stone?")
LINES = [f"The {number} stone was kept in water.\n" for number in range(300)]
SHELF = [Document("shelf", (SourceFile("stones.txt", (Span("".join(LINES), line=1),)),))]
SHORT = [Document("note", (SourceFile("note.txt", (Span("A word.", line=1),)),))]
DENSE_LEN = 2048


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "generation_config.json").write_text(json.dumps({"salalocal": {"closer_look_tokens": 128}}))
    sizes = {"kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 4}
    return make_engine(folder, sparse_config={**sizes, "dense_len": DENSE_LEN})


def test_it_answers_from_a_short_prompt_of_whole_lines(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, encode = list[str](), engine.tokenizer.encode_prompt

    def watched(messages: list[Message], documents: list[Document]) -> object:
        prompt = encode(messages, documents)
        prompts.append(engine.tokenizer.decode(prompt.ids))
        return prompt

    monkeypatch.setattr(engine.tokenizer, "encode_prompt", watched)
    session = engine.new_session()
    events = list(engine.chat(session, [QUESTION], SHELF, Sampling(max_tokens=3)))
    whole, short = prompts
    kept = short.split("stones.txt\n\n")[1].split("Question:")[0]
    assert 0 < len(kept) < len(whole) / 4
    assert all(line + "\n" in LINES for line in kept.split("\n") if line)
    assert short.split("Question:")[1] == whole.split("Question:")[1]
    evidence, done = events[-2:]
    assert isinstance(evidence, Evidence)
    for passage in evidence.passages:
        assert passage.place.file == "stones.txt"
        assert passage.text + "\n" == LINES[(passage.place.line or 0) - 1], "the place in the whole document"
    assert isinstance(done, Done)
    assert session.token_ids == encode([QUESTION], SHELF).ids, "the session holds the prompt, and no answer"
    assert (done.usage.prompt_tokens, done.usage.reused_tokens) == (session.length, 0)


def test_the_same_answer_again_and_after_another_question(engine: Engine) -> None:
    def answer(session: salalocal.Session, question: Message = QUESTION) -> tuple[list[int], int]:
        events = list(engine.chat(session, [question], SHELF, Sampling(max_tokens=8)))
        return [event.id for event in events if isinstance(event, Token)], events[-1].reused_tokens

    session = engine.new_session()
    first, reused = answer(session)
    assert reused == 0
    again, reused = answer(session)
    assert again == first
    assert reused >= engine.tokenizer.encode_prompt([QUESTION], SHELF).stable_tokens, "only the question is read again"
    answer(session, Message("user", "Who?"))
    assert answer(session)[0] == first


def test_short_documents_and_none_are_answered_as_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salalocal.engine.closer_look.excerpts", lambda *_: pytest.fail("a closer look"))
    for documents in (SHORT, []):
        session = engine.new_session()
        *_, done = engine.chat(session, [QUESTION], documents, Sampling(max_tokens=4))
        assert isinstance(done, Done)
        assert session.length > done.usage.prompt_tokens


def test_switched_off_it_answers_in_the_session(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "closer_look_tokens", 0)
    session = engine.new_session()
    *_, done = engine.chat(session, [QUESTION], SHELF, Sampling(max_tokens=4))
    assert isinstance(done, Done)
    assert session.length > done.usage.prompt_tokens


def test_cancelled_while_it_looks_the_session_says_how_far_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, session = threading.Event(), engine.new_session()
    found = salalocal.evidence.excerpts

    def stop(*arguments: object) -> object:
        cancel.set()
        return found(*arguments)

    monkeypatch.setattr("salalocal.engine.closer_look.excerpts", stop)
    with pytest.raises(Cancelled) as caught:
        list(engine.chat(session, [QUESTION], SHELF, Sampling(max_tokens=4), cancel))
    assert caught.value.length == session.length == len(engine.tokenizer.encode_prompt([QUESTION], SHELF).ids)
    cancel.clear()
    monkeypatch.undo()
    assert isinstance(list(engine.chat(session, [QUESTION], SHELF, Sampling(max_tokens=4)))[-1], Done)


@pytest.mark.parametrize("value", [-1, 1 << 17, 1.5, True, "2048", None])
def test_a_wrong_number_is_named(tmp_path: Path, value: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"salalocal": {"closer_look_tokens": value}}))
    with pytest.raises(BadConfig, match=r"generation_config\.json: salalocal\.closer_look_tokens must be"):
        make_engine(tmp_path)
