"""Lightning attention against its recurrence, written as a loop; slopes against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided
from torch import Tensor

from salalocal_kernels import lightning_decode, lightning_prefill, lightning_slopes


def naive(q, k, v, slopes, scale, state):
    """S_t = exp(-slope) S_{t-1} + k_t v_t^T, o_t = scale q_t^T S_t, one token and head at a time."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    state = state.copy()
    out = np.empty((tokens, heads, v.shape[-1]))
    for t in range(tokens):
        for h in range(heads):
            state[h] = math.exp(-slopes[h]) * state[h] + np.outer(k[t, h // group], v[t, h // group])
            out[t, h] = scale * q[t, h] @ state[h]
    return out, state


def inputs(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    wide = torch.promote_types(dtype, torch.float32)
    return (
        random(tokens, heads, 6, dtype=dtype, seed=1),
        random(tokens, kv_heads, 6, dtype=dtype, seed=2),
        random(tokens, kv_heads, 5, dtype=dtype, seed=3),
        torch.tensor(lightning_slopes(heads), dtype=wide),
        random(heads, 6, 5, dtype=wide, seed=4),
    )


def test_by_hand() -> None:
    # One head, d = 1, decay 1/2: S = 4 -> 4/2 + 1*10 = 12 -> 12/2 + 2*1 = 8; o = 3*12, 5*8, times 1/2.
    half = torch.tensor([math.log(2)], dtype=torch.float64)
    column = lambda *x: torch.tensor(x, dtype=torch.float64).view(-1, 1, 1)  # noqa: E731
    out, state = lightning_prefill(column(3, 5), column(1, 2), column(10, 1), half, 0.5, column(4))
    assert out.flatten().tolist() == pytest.approx([18, 20])
    assert state.item() == pytest.approx(8)


@dtypes
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (6, 2), (16, 16)])
def test_prefill_against_the_recurrence(dtype: torch.dtype, tokens: int, heads: int, kv_heads: int) -> None:
    q, k, v, slopes, state = inputs(tokens, heads, kv_heads, dtype)
    before = state.clone()
    expected, expected_state = naive(*map(as_array, (q, k, v, slopes)), 0.3, as_array(state))
    out, new_state = lightning_prefill(strided(q), strided(k), strided(v), slopes, 0.3, state)
    assert_close(out, expected, "out", dtype)
    assert_close(new_state, expected_state, "state", state.dtype)
    assert torch.equal(state, before), "the state given was written to"


@dtypes
def test_decode_against_the_recurrence(dtype: torch.dtype) -> None:
    q, k, v, slopes, state = inputs(9, 6, 2, dtype)
    expected, expected_state = naive(*map(as_array, (q, k, v, slopes)), 0.3, as_array(state))
    rows = [lightning_decode(q[t], k[t], v[t], slopes, 0.3, state) for t in range(9)]
    assert_close(torch.stack(rows), expected, "out", dtype)
    assert_close(state, expected_state, "state", state.dtype)


def test_prefill_in_pieces_continues_from_the_state() -> None:
    q, k, v, slopes, state = inputs(150, 4, 2, torch.float64)
    whole, final = lightning_prefill(q, k, v, slopes, 1.0, state)
    outs = []
    for start, stop in ((0, 1), (1, 66), (66, 67), (67, 150)):
        out, state = lightning_prefill(q[start:stop], k[start:stop], v[start:stop], slopes, 1.0, state)
        outs.append(out)
    assert_close(torch.cat(outs), as_array(whole), "out", torch.float64)
    assert_close(state, as_array(final), "state", torch.float64)


def test_steep_slopes_do_not_overflow() -> None:
    q, k, v, _, state = inputs(300, 2, 2, torch.float32)
    slopes = torch.tensor([50.0, 1e-6])
    expected, _ = naive(*map(as_array, (q, k, v, slopes)), 1.0, as_array(state))
    out, new_state = lightning_prefill(q, k, v, slopes, 1.0, state)
    assert new_state.isfinite().all()
    assert_close(out, expected, "out", torch.float32)


@pytest.mark.parametrize("heads", [1, 2, 4, 16, 32])
def test_slopes_of_powers_of_two(heads: int) -> None:
    expected = [2.0 ** (-8 * (head + 1) / heads) for head in range(heads)]
    assert lightning_slopes(heads) == pytest.approx(expected, rel=1e-7)


def test_slopes_of_32_heads_are_those_of_the_release() -> None:
    slopes = lightning_slopes(32)
    assert slopes[0] == pytest.approx(0.840896, rel=1e-6)
    assert slopes[31] == pytest.approx(2**-8)
    assert all(slope == float(np.float32(slope)) for slope in slopes), "not rounded to float32"


@pytest.mark.parametrize("heads", [3, 6, 12, 24, 33])
def test_slopes_of_other_counts_take_every_second_of_twice_as_many(heads: int) -> None:
    below = 1 << (heads.bit_length() - 1)
    expected = lightning_slopes(below) + lightning_slopes(2 * below)[0::2][: heads - below]
    assert lightning_slopes(heads) == expected
    assert len(expected) == heads
