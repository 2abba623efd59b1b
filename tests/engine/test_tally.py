"""How attention is watched, added up over an answer, and turned into passages."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from byte_engine import make_engine as make_text_engine
from naive_sala import random_ids

import salalocal
from salalocal.documents import Document, SourceFile, Span
from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Evidence, Token
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.engine.tally import AttentionTally
from salalocal.errors import InvalidRequest
from salalocal.evidence import read_passages

MakeEngine = Callable[..., Engine]
DENSE_LEN = 24  # of the tiny models: blocks of 4, two kv heads with three heads each
SPARSE_LAYERS, LIGHTNING_LAYER = (0, 2), 1
GROUP = 3


def watched(engine: Engine, **options: bool) -> Session:
    session = engine.new_session(**options)
    session.is_watched = True
    return session


def mass_by_position(session: Session, layers: tuple[int, ...] = SPARSE_LAYERS) -> dict[int, float]:
    """What the last query's attention gave to each position, added up token by token."""
    sums: dict[int, float] = defaultdict(float)
    for layer in layers:
        blocks, mass = session.attention_mass(layer)
        for picked, rows in zip(blocks.tolist(), mass.double().tolist(), strict=True):
            for block, row in zip(picked, rows, strict=True):
                for offset, share in enumerate(row):
                    if block >= 0:
                        sums[block * len(row) + offset] += share
                    else:
                        assert share == 0
    return sums


# ---- watching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 5, DENSE_LEN - 1, DENSE_LEN, 90], ids=lambda n: f"{n} tokens")
@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_a_call_says_how_its_last_token_shares_out(
    make_engine: MakeEngine, length: int, chunk_size: int | None
) -> None:
    session = watched(make_engine(), record_selection=True)
    assert not session.has_attention
    for count, ids in ((length, random_ids(length)), (length + 1, [7])):
        session.prefill(ids, chunk_size=chunk_size)
        assert session.has_attention
        for layer in SPARSE_LAYERS:
            blocks, mass = session.attention_mass(layer)
            assert (blocks.dtype, mass.dtype) == (torch.int32, torch.float32)
            assert mass.shape == (*blocks.shape, 4)
            assert mass.sum((1, 2)).tolist() == pytest.approx([GROUP, GROUP], rel=1e-5), "of each kv head"
            selected = session.selected_blocks(layer)
            if count < DENSE_LEN:
                assert selected is None
                assert blocks.tolist() == [list(range(-(-count // 4)))] * 2, "dense: all of the context"
            else:
                assert selected is not None
                assert torch.equal(blocks, selected[:, -1])
        assert max(mass_by_position(session)) < -(-count // 4) * 4
        assert sum(share for position, share in mass_by_position(session).items() if position >= count) == 0


@pytest.mark.parametrize("length", [DENSE_LEN - 1, 57], ids=["dense", "sparse"])
def test_attention_is_that_of_the_queries_and_keys(make_engine: MakeEngine, length: int) -> None:
    """A model of one attention layer whose keys and queries are computed here."""
    engine, ids = make_engine("s", dtype="float64"), random_ids(length)
    session = watched(engine)
    session.prefill(ids)
    blocks, mass = session.attention_mass(0)
    found = torch.zeros(2, 60)
    for head, picked in enumerate(blocks.tolist()):
        for block, row in zip(picked, mass[head], strict=True):
            found[head, 4 * block : 4 * block + 4] = row
    layer = engine._network.layers[0]
    x = engine._network.embedding.rows(torch.tensor(ids)) * engine.config.scale_emb
    y = x / (x.square().mean(-1, keepdim=True) + engine.config.rms_norm_eps).sqrt() * layer.input_norm
    q, k, *_ = layer.mixer.inputs(y)
    q, k = q[-1].view(2, GROUP, 4), k.view(length, 2, 4)
    logits = torch.einsum("hgd,thd->hgt", q, k) / 2
    is_read = torch.tensor([[token // 4 in picked for token in range(length)] for picked in blocks.tolist()])
    assert bool(is_read.all()) == (length < DENSE_LEN)
    expected = logits.masked_fill(~is_read[:, None], -torch.inf).softmax(-1).sum(1)
    torch.testing.assert_close(found[:, :length].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [10, 60], ids=["dense", "sparse"])
def test_watching_changes_no_logits(make_engine: MakeEngine, length: int) -> None:
    ids = random_ids(length)
    one, other = make_engine().new_session(), watched(make_engine())
    assert torch.equal(one.prefill(ids, chunk_size=9), other.prefill(ids, chunk_size=9))
    for token in (1, 2, 3):
        assert torch.equal(one.step(token), other.step(token))
    assert torch.equal(one.linear_state(LIGHTNING_LAYER), other.linear_state(LIGHTNING_LAYER))


@pytest.mark.parametrize("length", [10, 60], ids=["dense", "sparse"])
def test_nothing_is_computed_or_kept_when_nobody_watches(
    make_engine: MakeEngine, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = watched(make_engine())
    session.prefill(random_ids(length))
    assert session.has_attention
    session.is_watched = False
    monkeypatch.setattr("salalocal.model.sparse_layer.token_mass", lambda *_: pytest.fail("somebody watched"))
    session.step(3)
    for each in (session, make_engine().new_session(), make_engine().new_session(record_selection=True)):
        each.prefill(random_ids(length))
        assert not each.has_attention
        assert not each.has_attention
        with pytest.raises(InvalidRequest, match="is_watched must be set before the call"):
            each.attention_mass(0)


def test_what_cannot_be_told_is_refused(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    with pytest.raises(InvalidRequest, match="layer 0 has no attention to show"):
        session.attention_mass(0)
    session.prefill(random_ids(30))
    session.is_watched = True
    assert not session.has_attention, "the call was made before"
    with pytest.raises(InvalidRequest, match="is_watched must be set before the call"):
        session.attention_mass(0)
    session.step(1)
    session.attention_mass(0)
    for layer in (LIGHTNING_LAYER, 3, -1):
        with pytest.raises(InvalidRequest, match=r"attention layers are \(0, 2\)"):
            session.attention_mass(layer)


def test_it_is_forgotten_with_what_was_read(make_engine: MakeEngine) -> None:
    session = watched(make_engine())
    session.prefill(random_ids(30))
    checkpoint = session.checkpoint()
    session.step(1)
    assert not session.fork().has_attention
    session.rewind(checkpoint)
    assert not session.has_attention
    session.step(1)
    before = session.attention_mass(0)
    session.max_tokens = session.length
    with pytest.raises(salalocal.ContextTooLong):
        session.step(2)
    assert all(torch.equal(a, b) for a, b in zip(before, session.attention_mass(0), strict=True)), "still the last"
    session.max_tokens, cancel = 1000, threading.Event()
    cancel.set()
    with pytest.raises(salalocal.Cancelled):
        session.prefill([1, 2], cancel=cancel)
    assert not session.has_attention, "the last call read nothing"


# ---- adding up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "final_length"),
    [(10, None), (60, None), (5, 60)],
    ids=["dense then sparse", "sparse", "sparse with fewer blocks than it may read"],
)
@pytest.mark.parametrize("counted", [1, 7, 1000])
def test_a_tally_adds_up_queries_layers_and_heads(
    make_engine: MakeEngine, length: int, final_length: int | None, counted: int
) -> None:
    session, other = make_engine().new_session(), watched(make_engine())
    tally = AttentionTally(session, SPARSE_LAYERS, counted)
    expected = np.zeros(counted)
    with tally.watching():
        for ids in (random_ids(length), *([token] for token in random_ids(20, seed=4))):
            session.prefill(ids, final_length=final_length)
            other.prefill(ids, final_length=final_length)
            tally.add()
            for position, share in mass_by_position(other).items():
                if position < counted:
                    expected[position] += share
    np.testing.assert_allclose(tally.mass(), expected, rtol=1e-6, atol=1e-7)
    if counted > length + 20:
        assert tally.mass().sum() == pytest.approx(21 * len(SPARSE_LAYERS) * 2 * GROUP, rel=1e-5)


def test_a_query_is_counted_once(make_engine: MakeEngine) -> None:
    """Text held back to the end comes as one more token, for which nothing was read."""
    session = make_engine().new_session()
    tally = AttentionTally(session, SPARSE_LAYERS, 40)
    with tally.watching():
        session.prefill(random_ids(30))
        tally.add()
        once = tally.mass().copy()
        tally.add()
        np.testing.assert_array_equal(tally.mass(), once)
        session.step(1)
        tally.add()
    assert tally.mass().sum() == pytest.approx(2 * once.sum(), rel=1e-5)


def test_a_prompt_known_to_its_end_has_nothing_to_count(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(30))
    tally = AttentionTally(session, SPARSE_LAYERS, 31)
    with tally.watching():
        tally.add()
        assert tally.mass().sum() == 0
        session.step(2)
        tally.add()
        assert tally.mass().sum() == pytest.approx(len(SPARSE_LAYERS) * 2 * GROUP, rel=1e-5)


def test_watching_ends_with_the_block_whatever_happens(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    tally = AttentionTally(session, SPARSE_LAYERS, 5)
    with contextlib.suppress(KeyError), tally.watching():
        assert session.is_watched
        raise KeyError
    assert not session.is_watched
    session.is_watched = True  # by somebody else
    with tally.watching():
        pass
    assert session.is_watched


# ---- an answer about documents --------------------------------------------------------------------------------------

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
