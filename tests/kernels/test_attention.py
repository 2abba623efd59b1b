"""Dense and block-sparse attention over pages against a softmax written out, one query and head at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided
from torch import Tensor

from salalocal_kernels import dense_attention, sparse_attention_decode, token_mass
from salalocal_kernels.cpu import sparse_attention as cpu_module
from salalocal_kernels.ref import attention as module
from salalocal_kernels.ref.attention import sparse_attention_prefill

IMPLEMENTATIONS = {"ref": sparse_attention_prefill, "cpu": cpu_module.sparse_attention_prefill}


def naive(q, keys, values, first_position, scale, allowed) -> np.ndarray:
    """allowed(kv_head, row) -> the tokens a query may read, before causality; keys, values [Hkv, tokens, D]."""
    tokens, heads, _ = q.shape
    group = heads // keys.shape[0]
    out = np.empty_like(q)
    for t in range(tokens):
        for h in range(heads):
            g = h // group
            seen = [token for token in allowed(g, t) if token <= first_position + t]
            logits = np.array([scale * float(q[t, h] @ keys[g, token]) for token in seen])
            weights = np.exp(logits - logits.max())
            out[t, h] = (weights / weights.sum()) @ values[g, seen]
    return out


class Context:
    """Random K and V of `length` tokens, and the same in pages that lie in any order among others."""

    def __init__(self, length: int, kv_heads: int, block_size: int, dtype: torch.dtype, dim: int = 8) -> None:
        self.keys = random(kv_heads, length, dim, dtype=dtype, seed=2)
        self.values = random(kv_heads, length, dim, dtype=dtype, seed=3)
        self.blocks = -(-length // block_size)
        order = torch.randperm(self.blocks + 3, generator=torch.Generator().manual_seed(length))
        self.table = order[: self.blocks]
        # Pages of other sessions, and the rest of the last page, hold large numbers: they must weigh nothing.
        self.pages = torch.full((self.blocks + 3, kv_heads, 2, block_size, dim), 77.0, dtype=dtype)
        for token in range(length):
            page, offset = int(self.table[token // block_size]), token % block_size
            self.pages[page, :, 0, offset] = self.keys[:, token]
            self.pages[page, :, 1, offset] = self.values[:, token]

    def in_order(self) -> Tensor:
        return self.pages[self.table]


@dtypes
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 2), (3, 1), (16, 2)])
@pytest.mark.parametrize(
    ("first", "tokens", "block_size"), [(0, 1, 4), (0, 9, 4), (7, 1, 8), (8, 1, 8), (5, 12, 1), (30, 3, 16)]
)
@pytest.mark.parametrize("tile", [4, 256])
def test_dense(
    dtype: torch.dtype,
    group: int,
    kv_heads: int,
    first: int,
    tokens: int,
    block_size: int,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_DENSE_TILE", tile)
    context = Context(first + tokens, kv_heads, block_size, dtype)
    q = random(tokens, group * kv_heads, 8, dtype=dtype, seed=1)
    everything = range(first + tokens)
    arrays = map(as_array, (q, context.keys, context.values))
    expected = naive(*arrays, first, 0.35, lambda *_: everything)
    assert_close(dense_attention(strided(q), context.in_order(), first, 0.35), expected, "out", dtype)


def selection(first: int, tokens: int, block_size: int, kv_heads: int, k: int, seed: int) -> Tensor:
    """Random blocks per kv head and query, the own one among them, ascending, -1 padded."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.full((kv_heads, tokens, k), -1, dtype=torch.int32)
    for g in range(kv_heads):
        for t in range(tokens):
            own = (first + t) // block_size
            others = torch.randperm(own, generator=generator)[: int(torch.randint(0, k, (), generator=generator))]
            row = sorted([*others.tolist(), own])
            picked[g, t, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return picked


@dtypes
@pytest.mark.parametrize(("group", "kv_heads"), [(1, 1), (3, 2), (16, 1)])
@pytest.mark.parametrize(
    ("first", "tokens", "block_size"), [(0, 1, 4), (0, 17, 4), (40, 8, 8), (39, 9, 8), (13, 3, 1), (95, 1, 16)]
)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_sparse_prefill(
    name: str,
    dtype: torch.dtype,
    group: int,
    kv_heads: int,
    first: int,
    tokens: int,
    block_size: int,
    k: int,
) -> None:
    context = Context(first + tokens, kv_heads, block_size, dtype)
    q = random(tokens, group * kv_heads, 8, dtype=dtype, seed=1)
    blocks = selection(first, tokens, block_size, kv_heads, k, seed=first + k)
    chosen = blocks.tolist()

    def allowed(g: int, t: int) -> list[int]:
        return [b * block_size + offset for b in chosen[g][t] if b >= 0 for offset in range(block_size)]

    expected = naive(*map(as_array, (q, context.keys, context.values)), first, 0.35, allowed)
    out = IMPLEMENTATIONS[name](strided(q), context.pages, context.table, blocks, first, 0.35)
    assert_close(out, expected, "out", dtype)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_what_is_read_of_some_blocks_adds_up(name: str, dtype: torch.dtype) -> None:
    context = Context(70, 2, 8, dtype)
    q = random(12, 6, 8, dtype=dtype, seed=1)
    blocks = selection(58, 12, 8, 2, 4, seed=5)
    whole = sparse_attention_prefill(q.double(), context.pages.double(), context.table, blocks, 58, 0.35)
    lses, outs = [], []
    for low, high in ((0, 3), (3, 8), (8, 9), (20, 30)):
        lses.append(torch.empty(12, 6, dtype=torch.float64))
        some = torch.where((blocks >= low) & (blocks < high), blocks, -1)
        outs.append(IMPLEMENTATIONS[name](q, context.pages, context.table, some, 58, 0.35, lses[-1]))
        assert outs[-1].dtype == torch.float64
    assert lses[-1].isneginf().all()
    assert not outs[-1].any()
    shares = torch.stack(lses).softmax(0)
    torch.testing.assert_close((shares[..., None] * torch.stack(outs)).sum(0), whole, rtol=1e-12, atol=1e-12)
    lse, out = torch.empty(12, 6, dtype=torch.float64), None
    for span in ((20, 30), (8, 9), (0, 3), (20, 30), (3, 8)):
        out = IMPLEMENTATIONS[name](q, context.pages, context.table, blocks, 58, 0.35, lse, out, span)
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, torch.stack(lses).logsumexp(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 33, 80])
def test_decode_with_a_page_table_per_kv_head(length: int) -> None:
    context = Context(length, 2, 16, torch.float32)
    q, blocks = random(6, 8, dtype=torch.float32, seed=1), selection(length - 1, 1, 16, 2, 3, seed=length)[:, 0]
    slots = torch.cat([context.pages[:, 0], context.pages[:, 1]])[:, None].expand(-1, 2, -1, -1, -1)
    table = torch.stack([context.table, context.table + len(context.pages)])
    for op in (sparse_attention_decode, token_mass):
        expected = op(q, context.pages, context.table, blocks, length, 0.35)
        assert torch.equal(op(q, slots, table, blocks, length, 0.35), expected)


@dtypes
@pytest.mark.parametrize("length", [1, 15, 16, 17, 80])
def test_sparse_decode(dtype: torch.dtype, length: int) -> None:
    context = Context(length, 2, 16, dtype)
    q = random(1, 6, 8, dtype=dtype, seed=1)
    blocks = selection(length - 1, 1, 16, 2, 3, seed=length)
    chosen = blocks.tolist()

    def allowed(g: int, t: int) -> list[int]:
        return [b * 16 + offset for b in chosen[g][t] if b >= 0 for offset in range(16)]

    expected = naive(*map(as_array, (q, context.keys, context.values)), length - 1, 0.35, allowed)
    out = sparse_attention_decode(q[0], context.pages, context.table, blocks[:, 0], length, 0.35)
    assert_close(out, expected[0], "out", dtype)


def test_sparse_over_all_blocks_is_dense() -> None:
    context = Context(50, 2, 8, torch.float64)
    q = random(20, 6, 8, seed=1)
    everything = torch.arange(7, dtype=torch.int32).expand(2, 20, 7)
    sparse = sparse_attention_prefill(q, context.pages, context.table, everything, 30, 0.3)
    assert_close(sparse, as_array(dense_attention(q, context.in_order(), 30, 0.3)), "out", torch.float64)


def test_one_visible_token_gives_its_value() -> None:
    context = Context(1, 1, 4, torch.float32)
    q = random(1, 3, 8, dtype=torch.float32)
    expected = context.values[0].expand(1, 3, 8)
    torch.testing.assert_close(dense_attention(q, context.in_order(), 0, 1.0), expected)


def test_pages_with_any_strides() -> None:
    context = Context(50, 2, 8, torch.float64)
    q = random(4, 6, 8, seed=1)
    blocks = selection(46, 4, 8, 2, 4, seed=9)
    # As the cache stores them: the pages of one head adjacent.
    pages = context.pages.permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4)
    assert not pages.is_contiguous()
    expected = sparse_attention_prefill(q, context.pages, context.table, blocks, 46, 0.3)
    assert torch.equal(sparse_attention_prefill(q, pages, context.table, blocks, 46, 0.3), expected)


def test_softmax_of_bfloat16_is_at_least_float32() -> None:
    # 4096 equal keys: weights of 2^-12 summed in bfloat16 would stop at 2^-4.
    length = 4096
    pages = torch.zeros(length // 64, 1, 2, 64, 8, dtype=torch.bfloat16)
    pages[:, :, 1] = 1.0
    out = dense_attention(torch.ones(1, 1, 8, dtype=torch.bfloat16), pages, length - 1, 1.0)
    assert out.float().allclose(torch.ones(1, 1, 8), rtol=2**-8)
