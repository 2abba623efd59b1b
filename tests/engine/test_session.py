"""A session's promises one by one: chunks, the dense/sparse switch, checkpoints, selections, refusals."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from naive_sala import random_ids

from salalocal.engine import checkpoints
from salalocal.engine.engine import Engine
from salalocal.engine.progress import Progress
from salalocal.errors import ContextTooLong, InvalidRequest

MakeEngine = Callable[..., Engine]
DENSE_LEN = 24  # of the tiny models; K = 6 blocks of 4


# ---- chunks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000, None])
@pytest.mark.parametrize("length", [200, 300], ids=["dense", "sparse"])
def test_any_chunk_size_gives_the_one_shot_result(m2: Engine, chunk_size: int | None, length: int) -> None:
    ids = random_ids(length + 3, vocab=256)
    whole, session = m2.new_session(record_selection=True), m2.new_session(record_selection=True)
    expected = whole.prefill(ids[:length], chunk_size=length, all_logits=True)
    found = session.prefill(ids[:length], chunk_size=chunk_size, all_logits=True)
    assert found.shape == (length, 256)
    assert (found - expected).abs().max() < 1e-3
    for layer in m2.config.sparse_layers:
        assert_equal_selections(session.selected_blocks(layer), whole.selected_blocks(layer))
    for token in ids[length:]:
        assert (session.step(token) - whole.step(token)).abs().max() < 1e-3
    for layer in m2.config.lightning_layers:
        assert (session.linear_state(layer) - whole.linear_state(layer)).abs().max() < 1e-3


def assert_equal_selections(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert torch.equal(found, expected)


def test_chunks_under_one_final_length_equal_one_shot(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(dtype="float64"), random_ids(90)
    expected = engine.new_session().prefill(ids, chunk_size=90, all_logits=True)
    session, parts = engine.new_session(), []
    for start, stop, chunk in ((0, 1, None), (1, 20, 3), (20, 57, 5), (57, 89, None), (89, 90, 1)):
        parts.append(session.prefill(ids[start:stop], chunk_size=chunk, final_length=90, all_logits=True))
    np.testing.assert_allclose(torch.cat(parts).numpy(), expected.numpy(), atol=1e-10)


def test_last_logits_are_those_of_the_last_row(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(), random_ids(30)
    one, other = engine.new_session(), engine.new_session()
    rows = one.prefill(ids, chunk_size=13, all_logits=True)
    last = other.prefill(ids, chunk_size=13)
    assert rows.shape == (30, 40)
    assert rows.dtype == last.dtype == torch.float32
    torch.testing.assert_close(rows[-1], last)
    assert one.logits is not None
    assert torch.equal(one.logits, rows[-1])


@pytest.mark.parametrize(("dtype", "wide"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_dtypes_of_logits_and_states(make_engine: MakeEngine, dtype: str, wide: torch.dtype) -> None:
    session = make_engine(dtype=dtype).new_session()
    assert session.prefill(random_ids(30)).dtype == wide
    assert session.linear_state(1).dtype == wide


# ---- progress and cancel ---------------------------------------------------------------------------------------------


def test_progress_counts_the_call(make_engine: MakeEngine) -> None:
    session, seen = make_engine().new_session(), []
    session.prefill(random_ids(10))
    session.prefill(random_ids(25), chunk_size=10, on_progress=seen.append)
    assert [(p.done_tokens, p.total_tokens) for p in seen] == [(10, 25), (20, 25), (25, 25)]
    assert all(p.tokens_per_second > 0 and p.host_bytes > 1 << 20 and p.device_bytes == 0 for p in seen)
    assert seen[-1].seconds_left == 0
    assert seen[0].seconds_left == pytest.approx(15 / seen[0].tokens_per_second)


# ---- dense or sparse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "final_length", "is_sparse"),
    [
        (DENSE_LEN - 1, None, False),
        (DENSE_LEN, None, True),
        (DENSE_LEN - 1, DENSE_LEN - 1, False),
        (DENSE_LEN - 1, DENSE_LEN, True),
        (1, DENSE_LEN - 1, False),
        (1, DENSE_LEN, True),
        (DENSE_LEN + 40, None, True),
    ],
)
def test_the_final_length_decides(
    make_engine: MakeEngine, count: int, final_length: int | None, is_sparse: bool
) -> None:
    session = make_engine().new_session(record_selection=True)
    session.prefill(random_ids(count), final_length=final_length, chunk_size=5)
    assert (session.selected_blocks(0) is not None) == is_sparse


def test_a_step_becomes_sparse_when_it_reaches_dense_len(make_engine: MakeEngine) -> None:
    session = make_engine().new_session(record_selection=True)
    session.prefill(random_ids(DENSE_LEN - 2))
    session.step(1)
    assert session.selected_blocks(0) is None
    session.step(2)
    assert session.selected_blocks(0) is not None


def test_dense_and_sparse_differ_where_blocks_are_dropped(make_engine: MakeEngine) -> None:
    """Otherwise the switch would be tested by nothing but its own record."""
    engine, ids = make_engine(dtype="float64"), random_ids(DENSE_LEN - 1)
    dense = engine.new_session().prefill(ids, all_logits=True)
    # 6 blocks of 4: as long as nothing is dropped, both are the same function.
    sparse = engine.new_session().prefill(ids, final_length=DENSE_LEN, all_logits=True)
    np.testing.assert_allclose(dense.numpy(), sparse.numpy(), atol=1e-10)
    wide = make_engine(dtype="float64", sparse_config=None)
    long = random_ids(80)
    assert (wide.new_session().prefill(long) - engine.new_session().prefill(long)).abs().max() > 1e-3


# ---- selections and states -------------------------------------------------------------------------------------------


def test_shapes_of_selected_blocks(make_engine: MakeEngine) -> None:
    session = make_engine().new_session(record_selection=True)
    session.prefill(random_ids(50), chunk_size=7)
    blocks = session.selected_blocks(0)
    assert blocks is not None
    assert (tuple(blocks.shape), blocks.dtype) == ((2, 50, 6), torch.int32)
    for t in range(50):
        for row in blocks[:, t].tolist():
            picked = [block for block in row if block >= 0]
            assert row == sorted(picked) + [-1] * (6 - len(picked))
            assert {0, t // 4} <= set(picked) <= set(range(t // 4 + 1))
    session.step(3)
    assert session.selected_blocks(2).shape == (2, 1, 6)
    session.rewind(session.checkpoints[0])
    assert session.selected_blocks(0) is None


def test_selection_of_a_call_beyond_one_tile(make_engine: MakeEngine) -> None:
    session = make_engine().new_session(record_selection=True)
    session.prefill(random_ids(1100), chunk_size=1100)
    assert session.selected_blocks(0).shape == (2, 1100, 6)


def test_what_has_no_selection_or_state_says_so(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    with pytest.raises(InvalidRequest, match="record_selection=True"):
        session.selected_blocks(0)
    recording = make_engine().new_session(record_selection=True)
    for layer in (1, -1, 3):
        with pytest.raises(InvalidRequest, match=r"selects no blocks; sparse are \(0, 2\)"):
            recording.selected_blocks(layer)
    for layer in (0, 2, -1, 7):
        with pytest.raises(InvalidRequest, match=r"has no linear state; lightning layers are \(1,\)"):
            session.linear_state(layer)
    assert session.linear_state(1).eq(0).all()


def test_what_is_handed_out_is_the_callers_own(make_engine: MakeEngine) -> None:
    engine, ids = make_engine(), random_ids(30)
    session, fresh = engine.new_session(record_selection=True), engine.new_session(record_selection=True)
    logits = session.prefill(ids)
    fresh.prefill(ids)
    for tensor in (logits, session.linear_state(1), session.selected_blocks(0)):
        tensor.zero_()
    assert session.logits is not None
    assert torch.equal(session.logits, fresh.logits)
    assert torch.equal(session.linear_state(1), fresh.linear_state(1))
    assert torch.equal(session.selected_blocks(0), fresh.selected_blocks(0))
    session.prefill([1], all_logits=True).zero_()
    fresh.prefill([1], all_logits=True)
    assert torch.equal(session.logits, fresh.logits)
    assert torch.equal(session.step(5), fresh.step(5))


def test_all_logits_are_not_kept_alive(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(50), all_logits=True)
    assert session.logits is not None
    assert session.logits.untyped_storage().nbytes() == 40 * 4


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_checkpoints_at(make_engine: MakeEngine) -> None:
    session, edges = make_engine().new_session(), []
    session.prefill(random_ids(10))
    session.prefill(
        random_ids(30),
        chunk_size=8,
        checkpoints_at=[3, 10, 13, 14, 40, 41, -5],
        on_progress=lambda progress: edges.append(10 + progress.done_tokens),
    )
    assert [known.position for known in session.checkpoints] == [0, 10, 13, 14, 40]
    assert edges == [13, 14, 22, 30, 38, 40], "a chunk ends at every checkpoint"
    assert session.checkpoints[0].logits is None
    assert session.checkpoint() is session.checkpoints[-1]


def test_checkpoints_are_thinned_to_the_budget(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(1))
    each = session.checkpoint().nbytes
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BUDGET_BYTES", 5 * each)
    session.prefill(random_ids(100), checkpoints_at=range(0, 101, 10))
    positions = [known.position for known in session.checkpoints]
    assert len(positions) <= 5
    assert (positions[0], positions[-1]) == (0, 100)
    assert max(b - a for a, b in itertools.pairwise(positions)) <= 50


def test_nbytes_counts_cache_and_checkpoints(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    empty = session.nbytes
    session.prefill(random_ids(200))
    before = session.nbytes
    assert before > empty
    assert session.checkpoint().nbytes == 6 * 6 * 6 * 4 + 40 * 4
    assert session.nbytes == before + session.checkpoints[-1].nbytes


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"token_ids": []}, "token_ids is empty"),
        ({"token_ids": [1, -1]}, "outside 0 to 39"),
        ({"token_ids": [40]}, "outside 0 to 39"),
        ({"token_ids": [10**30]}, "outside 0 to 39"),
        ({"token_ids": [1.5]}, "must hold integers"),
        ({"token_ids": ["1"]}, "must hold integers"),
        ({"token_ids": [1], "chunk_size": 0}, "chunk_size is 0"),
        ({"token_ids": [1], "chunk_size": -3}, "chunk_size is -3"),
        ({"token_ids": [1, 2], "final_length": 31}, "final_length is 31, but the session reaches 32"),
    ],
    ids=str,
)
def test_refused_calls_change_nothing(make_engine: MakeEngine, arguments: dict, problem: str) -> None:
    session, fresh = make_engine().new_session(), make_engine().new_session()
    for each in (session, fresh):
        each.prefill(random_ids(30))
    with pytest.raises(InvalidRequest, match=problem):
        session.prefill(**arguments)
    assert session.length == 30
    assert torch.equal(session.step(1), fresh.step(1))


def test_integers_of_other_libraries_are_taken(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    session.prefill(np.array([1, 2], dtype=np.int32))
    session.prefill(torch.tensor([3]))
    session.step(np.int64(4))
    assert session.token_ids == [1, 2, 3, 4]
    assert all(type(token) is int for token in session.token_ids)


def test_too_long_names_both_numbers_and_reads_nothing(make_engine: MakeEngine) -> None:
    session = make_engine().new_session()
    session.max_tokens = 40
    session.prefill(random_ids(30))
    for count, final_length, needed in ((11, None, 41), (1, 50, 50), (500, 500 + 30, 530)):
        with pytest.raises(ContextTooLong, match=f"leave out at least {needed - 40}") as refused:
            session.prefill(random_ids(count), final_length=final_length)
        assert (refused.value.needed_tokens, refused.value.limit_tokens) == (needed, 40)
        assert session.length == 30
    session.prefill(random_ids(10))
    with pytest.raises(ContextTooLong):
        session.step(1)
    assert session.length == 40
    session.rewind(session.checkpoints[0])
    session.prefill(random_ids(40))


def test_cancel_is_looked_at_before_every_chunk(make_engine: MakeEngine) -> None:
    session, cancel = make_engine().new_session(), threading.Event()
    seen: list[Progress] = []
    session.prefill(random_ids(30), chunk_size=10, cancel=cancel, on_progress=seen.append)
    assert len(seen) == 3, "an event that is not set stops nothing"
