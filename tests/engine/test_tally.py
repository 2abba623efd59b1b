"""How attention is added up over the queries of an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from naive_sala import random_ids
from watching import SPARSE_LAYERS, mass_by_position, watched

from salalocal.engine.engine import Engine
from salalocal.engine.tally import AttentionTally

MakeEngine = Callable[..., Engine]
GROUP = 3  # of the tiny models: two kv heads with three heads each


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
