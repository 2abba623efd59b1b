"""An answer about documents comes with the sentences that its queries attended to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from byte_engine import make_engine as make_text_engine
from watching import mass_by_position, watched

import salalocal
from salalocal.documents import Document, SourceFile, Span
from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Evidence, Token
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.engine.tally import AttentionTally
from salalocal.evidence import read_passages

PAGES = (
    Span("The tower was built by Ada Marlowe. It stands on a rock.\n", page=1),
    Span("The last keeper left in June. Nobody came after him!\n", page=2),
)
SHELF = (
    Document("rock", (SourceFile("rock.pdf", PAGES),)),
    Document("notes", (SourceFile("a/notes.md", (Span("# Oil\n\nOil was dear.\nÉté: 5 £.\n", line=1),)),)),
)
QUESTION = salalocal.Message("user", "Who built it?")
ANSWER_TOKENS = 6


@pytest.fixture(scope="module", params=[24, 100_000], ids=["sparse", "dense"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    sizes = {"kernel_size": 4, "kernel_stride": 2, "init_blocks": 1, "block_size": 4, "window_size": 8, "topk": 12}
    return make_text_engine(tmp_path_factory.mktemp("tiny"), sparse_config={**sizes, "dense_len": request.param})


def ask(engine: Engine, session: Session, documents: tuple[Document, ...], **sampling: object) -> list[object]:
    options = {"max_tokens": ANSWER_TOKENS, **sampling}
    return list(engine.chat(session, [QUESTION], documents, Sampling(**options)))  # type: ignore[arg-type]


def evidence_of(events: list[object]) -> Evidence:
    (evidence,) = (event for event in events if isinstance(event, Evidence))
    return evidence


def test_an_answer_comes_with_the_sentences_that_were_read(engine: Engine) -> None:
    session = engine.new_session()
    events = ask(engine, session, SHELF)
    assert [type(event) for event in events[-2:]] == [Evidence, Done]
    passages = evidence_of(events).passages
    assert passages
    shares = [passage.share for passage in passages]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1 + 1e-9
    spans = {("rock.pdf", span.page): span for span in PAGES} | {("a/notes.md", None): SHELF[1].files[0].spans[0]}
    for passage in passages:
        span = spans[passage.place.file, passage.place.page]
        assert passage.text in " ".join(span.text.split())
        if span.line is not None:
            assert passage.place.line is not None
            rest = "\n".join(span.text.split("\n")[passage.place.line - 1 :])
            assert rest.lstrip().startswith(passage.text.split()[0])
    assert not session.is_watched


def test_evidence_is_the_attention_of_the_answers_queries(engine: Engine) -> None:
    """The same tokens read one by one in another session, and what they attended to added up here."""
    events = ask(engine, engine.new_session(), SHELF)
    tokens = [event.id for event in events if isinstance(event, Token)][:ANSWER_TOKENS]
    prompt = engine.tokenizer.encode_prompt([QUESTION], SHELF)
    session, mass = watched(engine), np.zeros(len(prompt.ids) + ANSWER_TOKENS + 4)
    for ids in (prompt.ids, *([token] for token in tokens[:-1])):
        # Chunks end where the documents do.
        session.prefill(ids, checkpoints_at=[prompt.stable_tokens])
        for position, share in mass_by_position(session, engine.config.sparse_layers).items():
            mass[position] += share
    files = engine.tokenizer.document_tokens(SHELF, prompt.documents_at)
    expected = read_passages(mass, files)
    found = evidence_of(events).passages
    assert [(passage.text, passage.place) for passage in found] == [(one.text, one.place) for one in expected]
    assert [passage.share for passage in found] == pytest.approx([one.share for one in expected], rel=1e-5)


def test_watching_an_answer_changes_none_of_it(engine: Engine) -> None:
    """`generate` on the same prompt watches nothing."""
    prompt = engine.tokenizer.encode_prompt([QUESTION], SHELF)
    told = [event for event in ask(engine, engine.new_session(), SHELF) if isinstance(event, Token)]
    session = engine.new_session()
    session.prefill(prompt.ids[: prompt.stable_tokens], final_length=len(prompt.ids))
    alone = engine.generate(session, prompt.ids, Sampling(max_tokens=ANSWER_TOKENS))
    assert [event for event in alone if isinstance(event, Token)] == told


def test_without_documents_nobody_watches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salalocal.model.sparse_layer.token_mass", lambda *_: pytest.fail("somebody watched"))
    session = engine.new_session()
    events = ask(engine, session, ())
    assert not any(isinstance(event, Evidence) for event in events)
    assert isinstance(events[-1], Done)
    assert not session.has_attention


def test_an_answer_that_is_left_ends_the_watching(engine: Engine) -> None:
    session = engine.new_session()
    events = engine.chat(session, [QUESTION], SHELF, Sampling(max_tokens=ANSWER_TOKENS))
    next(event for event in events if isinstance(event, Token))
    assert session.is_watched
    events.close()  # type: ignore[attr-defined]
    assert not session.is_watched


def test_the_same_question_again_has_evidence_again(engine: Engine) -> None:
    """Nothing but the answer is read again, so the first token's query is not counted."""
    session = engine.new_session()
    first = evidence_of(ask(engine, session, SHELF))
    again = ask(engine, session, SHELF)
    assert not any(isinstance(event, salalocal.Progress) for event in again)
    assert evidence_of(again).passages
    texts = [[passage.text for passage in one.passages] for one in (first, evidence_of(again))]
    assert set(texts[0]) & set(texts[1])


def test_text_that_is_held_back_is_not_counted_twice(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop text that never comes holds the end back, which makes one more `Token`; the queries are the same."""
    counts = []
    text = "".join(event.text for event in ask(engine, engine.new_session(), SHELF) if isinstance(event, Token))
    mass = AttentionTally.mass
    monkeypatch.setattr(AttentionTally, "mass", lambda self: counts.append(mass(self).sum()) or mass(self))
    for stop in ((), (text[-1] + "never",)):
        ask(engine, engine.new_session(), SHELF, stop=stop)
    assert counts[0] == pytest.approx(counts[1], rel=1e-9)


def test_documents_at_is_where_they_begin(engine: Engine) -> None:
    for turns, at in itertools.product(([QUESTION], [salalocal.Message("system", "Be brief."), QUESTION]), (1, 2)):
        prompt = engine.tokenizer.encode_prompt(turns, SHELF[:at])
        ids = [token for one in SHELF[:at] for token in engine.tokenizer.encode_document(one)]
        assert prompt.ids[prompt.documents_at : prompt.stable_tokens] == ids
    assert engine.tokenizer.encode_prompt([QUESTION]).documents_at == 0
