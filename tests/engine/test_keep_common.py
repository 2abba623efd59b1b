"""What a session keeps of what it has read when another prompt comes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from naive_sala import random_ids

from salalocal.engine.engine import Engine
from salalocal.engine.session import Session
from salalocal.errors import InvalidRequest

MakeEngine = Callable[..., Engine]


def read(session: Session, ids: list[int], checkpoints_at: tuple[int, ...] = ()) -> None:
    session.prefill(ids, checkpoints_at=checkpoints_at, chunk_size=16)


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        (60, 60),  # a continuation: nothing is forgotten
        (61, 60),
        (50, 40),  # shorter: back to the checkpoint, whose logits are known
        (40, 40),
        (39, 20),
        (20, 20),
        (5, 0),
    ],
)
def test_common_beginning_with_linear_states(make_engine: MakeEngine, wanted: int, kept: int) -> None:
    session, ids = make_engine().new_session(), random_ids(61)
    read(session, ids[:60], checkpoints_at=(20, 40))
    assert session.keep_common(ids[:wanted]) == kept
    assert session.token_ids == ids[:kept]
    assert session.keep_common(tuple(ids[:wanted])) == kept, "the second time there is nothing to do"


@pytest.mark.parametrize(("same", "kept"), [(59, 40), (45, 40), (40, 40), (39, 20), (0, 0)])
def test_another_continuation_goes_back_to_a_checkpoint(make_engine: MakeEngine, same: int, kept: int) -> None:
    session, ids = make_engine().new_session(), random_ids(60)
    read(session, ids, checkpoints_at=(20, 40))
    other = ids[:same] + [(token + 1) % 40 for token in ids[same:]] + [1, 2, 3]
    assert session.keep_common(other) == kept
    read(session, other[kept:])
    fresh = make_engine().new_session()
    read(fresh, other)
    assert session.logits is not None
    assert fresh.logits is not None
    assert (session.logits - fresh.logits).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("same", "length", "kept"), [(60, 60, 60), (45, 60, 45), (45, 45, 44), (0, 9, 0), (40, 40, 40)]
)
def test_without_linear_states_any_position_will_do(make_engine: MakeEngine, same: int, length: int, kept: int) -> None:
    session, ids = make_engine("ss", sparse_config=None).new_session(), random_ids(60)
    read(session, ids, checkpoints_at=(40,))
    other = ids[:same] + [(token + 1) % 40 for token in ids[same:length]]
    checkpoints = len(session.checkpoints)
    assert session.keep_common(other) == kept
    assert len(session.checkpoints) <= checkpoints, "going back makes no checkpoints"
    assert all(known.logits is not None for known in session.checkpoints[1:])
    if kept < len(other):
        read(session, other[kept:])
    fresh = make_engine("ss", sparse_config=None).new_session()
    read(fresh, other)
    assert session.logits is not None
    assert fresh.logits is not None
    assert (session.logits - fresh.logits).abs().max() < 1e-4


def test_keep_common_of_nothing_is_refused(make_engine: MakeEngine) -> None:
    for mixers in ("sls", "ss"):
        session = make_engine(mixers).new_session()
        with pytest.raises(InvalidRequest, match="token_ids is empty"):
            session.keep_common([])
