"""Stage 1 of InfLLM-V2 against loops written from the specification, and against hand-computed scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numbers_of import TOLERANCE, as_array, random, strided
from torch import Tensor

from salalocal_kernels import block_scores, compress_keys
from salalocal_kernels.ref import block_scores as module


def naive(q, k1, k2, first_position, scale, stride, block_size, num_blocks):
    """P of every query and fine key, then the maximum over the keys that overlap each block."""
    tokens, heads, _ = q.shape
    kv_heads, fine_count, _ = k1.shape
    group = heads // kv_heads
    scores = np.full((kv_heads, tokens, num_blocks), -np.inf)
    for g in range(kv_heads):
        for t in range(tokens):
            i = first_position + t
            p = np.zeros(fine_count)
            for a in range(g * group, (g + 1) * group):
                # Coarse window j covers [4 j stride, 4 j stride + 8 stride), fine window j [j stride, (j + 2) stride).
                coarse = [
                    math.exp(scale * float(q[t, a] @ k2[g, j]))
                    for j in range(k2.shape[1])
                    if 4 * j * stride + 8 * stride <= i + 1
                ]
                for j in range(fine_count):
                    if coarse and (j + 2) * stride <= i + 1:
                        p[j] += math.exp(scale * float(q[t, a] @ k1[g, j])) / sum(coarse)
            for b in range(num_blocks):
                touching = [
                    p[j]
                    for j in range(fine_count)
                    if j * stride < (b + 1) * block_size and (j + 2) * stride > b * block_size
                ]
                scores[g, t, b] = max(touching, default=-np.inf)
    return scores


def case(
    tokens: int, length: int, group: int, kv_heads: int, stride: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    q = random(tokens, group * kv_heads, 8, dtype=dtype, seed=1)
    keys = random(kv_heads, length, 8, dtype=dtype, seed=2)
    return q, compress_keys(keys, 2 * stride, stride), compress_keys(keys, 8 * stride, 4 * stride)


def check(found: Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    assert tuple(found.shape) == expected.shape
    wide = torch.promote_types(dtype, torch.float32)
    assert found.dtype == wide, "scores are not rounded below float32"
    values = as_array(found)
    assert np.array_equal(np.isneginf(values), np.isneginf(expected)), "-inf exactly where no key overlaps"
    finite = ~np.isneginf(expected)
    tolerance = TOLERANCE[wide]
    np.testing.assert_allclose(values[finite], expected[finite], rtol=50 * tolerance, atol=tolerance)


def test_by_hand() -> None:
    # One head, D = 1, stride 1, blocks of 2; 8 tokens. Fine keys 0...6 (means of 2), one coarse key (mean of 8).
    k1 = torch.log(torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]]], dtype=torch.float64))
    k2 = torch.log(torch.tensor([[[2.0]]], dtype=torch.float64))
    q = torch.ones(2, 1, 1, dtype=torch.float64)
    scores = block_scores(q, k1, k2, 6, 1.0, 1, 2, 4)
    # The query at 6 sees no coarse key yet (it ends at token 7): a row of zeros.
    assert scores[0, 0].tolist() == [0, 0, 0, 0]
    # The query at 7: P = k / 2; block b is touched by fine keys 2b-1, 2b, 2b+1.
    assert scores[0, 1].tolist() == pytest.approx([1.0, 2.0, 3.0, 3.5])


def test_neighbours_tie_where_their_shared_key_is_the_best() -> None:
    k1 = torch.zeros(1, 7, 1, dtype=torch.float64)
    k1[0, 3] = 5.0  # overlaps the blocks 1 and 2
    scores = block_scores(torch.ones(1, 1, 1).double(), k1, torch.zeros(1, 1, 1).double(), 7, 1.0, 1, 2, 4)[0, 0]
    assert scores[1] == scores[2] == math.exp(5.0)


def test_heads_of_a_group_are_summed_each_with_its_own_normaliser() -> None:
    q = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    k1, k2 = torch.tensor([[[1.0]]]).double(), torch.tensor([[[3.0]]]).double()
    score = block_scores(q, k1, k2, 7, 1.0, 1, 2, 1)
    assert score.item() == pytest.approx(math.exp(1 - 3) + math.exp(2 - 6))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (3, 2), (16, 1)])
@pytest.mark.parametrize(
    ("first", "tokens", "stride", "per_block"),
    [(0, 1, 2, 4), (0, 40, 1, 1), (31, 1, 2, 4), (15, 18, 2, 4), (32, 17, 4, 2), (0, 33, 3, 1), (63, 2, 2, 8)],
)
def test_against_loops(
    dtype: torch.dtype, group: int, kv_heads: int, first: int, tokens: int, stride: int, per_block: int
) -> None:
    length, block = first + tokens, stride * per_block
    q, k1, k2 = case(tokens, length, group, kv_heads, stride, dtype)
    blocks = -(-length // block)
    scale = 8**-0.5
    expected = naive(*map(as_array, (q, k1, k2)), first, scale, stride, block, blocks)
    check(block_scores(strided(q), strided(k1), strided(k2), first, scale, stride, block, blocks), expected, dtype)


@pytest.mark.parametrize("length", [1, 3, 4, 15, 16])
def test_few_or_no_compressed_keys(length: int) -> None:
    stride, block = 2, 4
    q, k1, k2 = case(length, length, 2, 1, stride, torch.float64)
    blocks = -(-length // block)
    scores = block_scores(q, k1, k2, 0, 1.0, stride, block, blocks)
    check(scores, naive(*map(as_array, (q, k1, k2)), 0, 1.0, stride, block, blocks), torch.float64)
    if k2.shape[1] == 0:
        assert ((scores == 0) | scores.isneginf()).all(), "no normaliser, no scores"


def test_keys_of_the_future_do_not_count_however_large() -> None:
    q, k1, k2 = case(20, 20, 2, 1, 1, torch.float32)
    before = block_scores(q, k1, k2, 0, 1.0, 1, 2, 10)
    k1[:, 12:] = 1e4
    k2[:, 2:] = 1e4  # coarse key 2 covers the tokens 8 ... 15
    after = block_scores(q, k1, k2, 0, 1.0, 1, 2, 10)
    assert torch.equal(before[:, :13], after[:, :13])


def test_queries_are_scored_alike_in_any_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k1, k2 = case(37, 90, 3, 2, 2, torch.float64)
    whole = block_scores(q, k1, k2, 53, 1.0, 2, 8, 12)
    monkeypatch.setattr(module, "_SLAB_ELEMENTS", 3 * k1.shape[1] * 5)
    torch.testing.assert_close(block_scores(q, k1, k2, 53, 1.0, 2, 8, 12), whole, rtol=1e-12, atol=0)
