"""How a query's attention is shared out, against a softmax written out, one head at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numbers_of import as_array, random, strided
from torch import Tensor

from salalocal_kernels import sparse_attention_decode, token_mass

# The shares are float32, whatever they were computed in.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-6, torch.bfloat16: 2e-6}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))


def naive(q: np.ndarray, keys: np.ndarray, blocks: list[list[int]], block_size: int, scale: float) -> np.ndarray:
    """keys [Hkv, tokens, D]; every head of a group adds its softmax over the tokens of the blocks it reads."""
    group = len(q) // len(keys)
    mass = np.zeros((len(keys), len(blocks[0]), block_size))
    for head, row in enumerate(q):
        g = head // group
        seen = [
            (k, offset, block * block_size + offset)
            for k, block in enumerate(blocks[g])
            if block >= 0
            for offset in range(block_size)
            if block * block_size + offset < keys.shape[1]
        ]
        logits = [scale * float(row @ keys[g, token]) for _, _, token in seen]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        for (k, offset, _), weight in zip(seen, weights, strict=True):
            mass[g, k, offset] += weight / sum(weights)
    return mass


def paged(keys: Tensor, block_size: int, rest: float) -> tuple[Tensor, Tensor]:
    """The pages that hold `keys` [Hkv, tokens, D] in any order among others, and the page of each block.

    Whatever is no key of these holds `rest`: values, pages of other sessions, what lies behind the last token.
    """
    kv_heads, length, dim = keys.shape
    count = -(-length // block_size)
    table = torch.randperm(count + 3, generator=torch.Generator().manual_seed(length))[:count]
    pages = torch.full((count + 3, kv_heads, 2, block_size, dim), rest, dtype=keys.dtype)
    for token in range(length):
        pages[table[token // block_size], :, 0, token % block_size] = keys[:, token]
    return pages, table


def pick(length: int, block_size: int, kv_heads: int, k: int) -> Tensor:
    """For every kv head some blocks, the last one of the context among them, ascending, -1 padded."""
    own = (length - 1) // block_size
    generator = torch.Generator().manual_seed(length + k)
    blocks = torch.full((kv_heads, k), -1, dtype=torch.int32)
    for row in blocks:
        others = torch.randperm(own, generator=generator)[: int(torch.randint(0, k, (), generator=generator))]
        chosen = sorted([*others.tolist(), own])
        row[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return blocks


@dtypes
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 1), (3, 2), (16, 1), (2, 3)])
@pytest.mark.parametrize(("length", "block_size"), [(1, 4), (4, 4), (5, 4), (63, 16), (80, 16), (7, 1)])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("rest", [math.nan, math.inf, 1e30])
def test_against_a_written_out_softmax(
    dtype: torch.dtype, group: int, kv_heads: int, length: int, block_size: int, k: int, rest: float
) -> None:
    q, keys = random(group * kv_heads, 8, dtype=dtype, seed=1), random(kv_heads, length, 8, dtype=dtype, seed=2)
    pages, table = paged(keys, block_size, rest)
    blocks = pick(length, block_size, kv_heads, k)
    found = token_mass(strided(q), pages, table, blocks, length, 0.35)
    assert (tuple(found.shape), found.dtype) == ((kv_heads, k, block_size), torch.float32)
    expected = naive(as_array(q), as_array(keys), blocks.tolist(), block_size, 0.35)
    np.testing.assert_allclose(as_array(found), expected, rtol=0, atol=group * TOLERANCE[dtype])
    assert found.sum((1, 2)).tolist() == pytest.approx([group] * kv_heads, abs=1e-5 * group)
    tokens = blocks[..., None] * block_size + torch.arange(block_size)
    nothing = (blocks[..., None] < 0) | (tokens >= length)
    assert (found[nothing] == 0).all(), "padding and tokens not there yet"
    assert (found[~nothing] > 0).all()


def test_by_hand() -> None:
    # Two heads of one kv head, D = 1, blocks of 2, three tokens; the keys are logarithms, so the weights are numbers.
    keys = torch.log(torch.tensor([[[1.0], [2.0], [5.0]]], dtype=torch.float64))
    pages, table = paged(keys, 2, math.nan)
    blocks = torch.tensor([[0, 1, -1]], dtype=torch.int32)
    found = token_mass(torch.tensor([[1.0], [2.0]], dtype=torch.float64), pages, table, blocks, 3, 1.0)
    one, other = [1 / 8, 2 / 8, 5 / 8], [1 / 30, 4 / 30, 25 / 30]
    expected = [a + b for a, b in zip(one, other, strict=True)]
    assert found.flatten().tolist() == pytest.approx([*expected, 0, 0, 0])
    # The first block left out: the third token has all of both heads.
    alone = token_mass(
        torch.tensor([[1.0], [2.0]], dtype=torch.float64), pages, table, blocks[:, 1:].contiguous(), 3, 1.0
    )
    assert alone.flatten().tolist() == [2, 0, 0, 0]


def test_blocks_in_any_order_and_seen_through_any_strides() -> None:
    keys = random(2, 50, 8, seed=2)
    pages, table = paged(keys, 8, math.nan)
    q, blocks = random(6, 8, seed=1), torch.tensor([[0, 2, 6], [1, 3, 6]], dtype=torch.int32)
    expected = token_mass(q, pages, table, blocks, 50, 0.3)
    # As the cache stores them: the pages of one head adjacent.
    stored = pages.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4)
    assert torch.equal(token_mass(q, stored, table, blocks, 50, 0.3), expected)
    backwards = token_mass(q, pages, table, strided(blocks.flip(1)), 50, 0.3)
    torch.testing.assert_close(backwards.flip(1), expected)
    everything = torch.arange(7, dtype=torch.int32).expand(2, 7)  # as a dense call asks
    whole = token_mass(q, pages, table, everything, 50, 0.3)
    np.testing.assert_allclose(
        as_array(whole), naive(as_array(q), as_array(keys), everything.tolist(), 8, 0.3), atol=1e-6
    )


def test_large_logits_stay_finite() -> None:
    keys = torch.tensor([[[1e4], [9e3], [-1e4]]])
    pages, table = paged(keys, 4, math.nan)
    found = token_mass(torch.tensor([[1e3]]), pages, table, torch.zeros(1, 1, dtype=torch.int32), 3, 1.0)
    assert found.flatten().tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("length", [1, 16, 33])
def test_it_is_what_attention_weighs_its_values_with(length: int) -> None:
    """With values that name their token, the output of attention is the mass, for groups of one head."""
    pages, table = paged(random(2, length, 48, seed=2), 16, 0.0)
    for token in range(length):
        pages[table[token // 16], :, 1, token % 16, token] = 1.0
    q, blocks = random(2, 48, seed=1), pick(length, 16, 2, 2)
    out = sparse_attention_decode(q, pages, table, blocks, length, 0.2)
    expected = torch.zeros(2, 48, dtype=torch.float64)
    for head, row in enumerate(token_mass(q, pages, table, blocks, length, 0.2).double()):
        for block, weights in zip(blocks[head].tolist(), row, strict=True):
            if block >= 0:
                expected[head, block * 16 : block * 16 + 16] += weights
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
