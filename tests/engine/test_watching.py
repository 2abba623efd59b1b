"""How a session tells what its last token attended to, where somebody watches."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from naive_sala import random_ids
from watching import SPARSE_LAYERS, mass_by_position, watched

import salalocal
from salalocal.engine.engine import Engine
from salalocal.errors import InvalidRequest

MakeEngine = Callable[..., Engine]
DENSE_LEN = 24  # of the tiny models: blocks of 4, two kv heads with three heads each
LIGHTNING_LAYER = 1
GROUP = 3


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
