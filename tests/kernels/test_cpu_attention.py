"""Block-sparse attention made for processors against its definition, where it goes other ways than the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbers_of import as_array, assert_close, dtypes, random, strided
from torch import Tensor

from salalocal_kernels.cpu import sparse_attention as module
from salalocal_kernels.cpu.block_lists import block_lists
from salalocal_kernels.ref import attention as ref

BLOCK = 4


def selection(first: int, tokens: int, kv_heads: int, k: int, seed: int) -> Tensor:
    """Like `select_blocks`: the first block, the own one and the one before it, then others, ascending, -1 padded."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.full((kv_heads, tokens, k), -1, dtype=torch.int32)
    for g in range(kv_heads):
        for t in range(tokens):
            own = (first + t) // BLOCK
            forced = list(dict.fromkeys([own, 0, max(0, own - 1)]))
            free = [b for b in torch.randperm(own + 1, generator=generator).tolist() if b not in forced]
            row = sorted((forced + free)[:k])
            picked[g, t, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return picked


def problem(
    first: int, tokens: int, kv_heads: int, group: int, k: int, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, pages in any order among others, their table and blocks."""
    count = -(-(first + tokens) // BLOCK)
    table = torch.randperm(count + 3, generator=torch.Generator().manual_seed(seed))[:count]
    q = random(tokens, group * kv_heads, 8, dtype=dtype, seed=seed)
    pages = random(count + 3, kv_heads, 2, BLOCK, 8, dtype=dtype, seed=seed + 1)
    return q, pages, table, selection(first, tokens, kv_heads, k, seed)


def check(q: Tensor, pages: Tensor, table: Tensor, blocks: Tensor, first: int, scale: float) -> None:
    found = module.sparse_attention_prefill(q, pages, table, blocks, first, scale)
    expected = ref.sparse_attention_prefill(q.double(), pages.double(), table, blocks, first, scale)
    assert_close(found, as_array(expected), "out", q.dtype)


@dtypes
@pytest.mark.parametrize(("kv_heads", "group"), [(1, 8), (2, 3)])
@pytest.mark.parametrize(("first", "tokens"), [(0, 1), (0, 30), (121, 2), (120, 33), (123, 40), (127, 1)])
@pytest.mark.parametrize("logits", [1, 200, 1 << 19])
def test_however_many_blocks_go_together(
    dtype: torch.dtype, kv_heads: int, group: int, first: int, tokens: int, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOGITS", logits)
    q, pages, table, blocks = problem(first, tokens, kv_heads, group, 9, dtype, seed=first + tokens)
    check(strided(q), strided(pages), table, blocks, first, 0.3)


@pytest.mark.parametrize(("queries", "reads"), [(7, 1 << 24), (2048, 300), (2048, 1)])
def test_however_many_queries_go_together(queries: int, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERIES", queries)
    monkeypatch.setattr(module, "_READS", reads)
    q, pages, table, blocks = problem(123, 40, 2, 3, 9, torch.float32, seed=1)
    check(q, pages, table, blocks, 123, 0.3)


@given(
    first=st.integers(0, 70),
    tokens=st.integers(1, 25),
    kv_heads=st.integers(1, 2),
    k=st.integers(3, 12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_selection(first: int, tokens: int, kv_heads: int, k: int, seed: int) -> None:
    q, pages, table, blocks = problem(first, tokens, kv_heads, 2, k, torch.float64, seed)
    check(q, pages, table, blocks, first, 0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("factor", [30.0, 300.0, 3000.0, -3000.0])
def test_a_block_whose_logits_are_far_from_those_of_the_window(dtype: torch.dtype, factor: float) -> None:
    q, pages, table, blocks = problem(160, 12, 1, 2, 9, dtype, seed=3)
    # Channel 0 of every query is 1, so a key's first channel moves all its logits: block 20's by `factor`.
    q[..., 0], pages[..., 0, :, 0] = 1, 0
    pages[table[20], :, 0, :, 0] = factor
    blocks[:, :, 1] = torch.where(torch.arange(12) % 3 > 0, 20, blocks[:, :, 1])
    found = module.sparse_attention_prefill(q, pages, table, blocks, 160, 1.0)
    expected = ref.sparse_attention_prefill(q.double(), pages.double(), table, blocks, 160, 1.0)
    # A logit is off by its rounding, and a weight relatively by as much; values are up to 3.
    rounding = torch.finfo(dtype).eps * (abs(factor) + 10)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * rounding)


def test_blocks_after_the_own_one_are_not_read() -> None:
    q, pages, table, blocks = problem(20, 6, 1, 2, 4, torch.float64, seed=5)
    expected = module.sparse_attention_prefill(q, pages, table, blocks, 20, 0.3)
    beyond = torch.cat([blocks, torch.full((1, 6, 1), 6, dtype=torch.int32)], dim=2)[:, :4]
    found = module.sparse_attention_prefill(q[:4], pages, table, beyond, 20, 0.3)
    torch.testing.assert_close(found, expected[:4], rtol=1e-13, atol=0)


def test_with_any_number_of_threads() -> None:
    q, pages, table, blocks = problem(123, 40, 2, 4, 9, torch.float64, seed=6)
    before = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 3):
            torch.set_num_threads(count)
            outs.append(module.sparse_attention_prefill(q, pages, table, blocks, 123, 0.3))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*outs, rtol=1e-12, atol=1e-12)


@given(
    first=st.integers(0, 70), tokens=st.integers(1, 30), k=st.integers(3, 12), most=st.integers(1, 99),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_block_of_a_query_is_listed_once(first: int, tokens: int, k: int, most: int, seed: int) -> None:
    blocks = selection(first, tokens, 1, k, seed)[0]
    shared, readers = block_lists(blocks, first, BLOCK, most)
    listed = [
        (query, block) for part in shared for query in range(part.start, part.stop) for block in part.blocks.tolist()
    ]
    assert [(part.start, part.stop) for part in shared] == [
        (max(0, block * BLOCK - first), min(tokens, (block + 1) * BLOCK - first))
        for block in range(first // BLOCK, (first + tokens - 1) // BLOCK + 1)
    ]
    for some in readers:
        assert some.queries.numel() <= max(most, some.queries.shape[1])
        for block, row in zip(some.blocks.tolist(), some.queries.tolist(), strict=True):
            listed += [(query, block) for query in row if query < tokens]
    assert sorted(listed) == [(t, b) for t, row in enumerate(blocks.tolist()) for b in row if b >= 0]
