"""Attention over selected blocks on a processor: one block after another, each for all the queries that read it.

A query reads 96 blocks and a block of a long text is read by many queries, so taking the blocks in turn moves queries
(2 KiB each at 8 heads of 64) instead of blocks (32 KiB) and multiplies nothing that is masked afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Queries that go through the blocks together. More of them make the products of a block larger.
_TILE = 2048


def sparse_attention_prefill(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, first_position: int | Tensor, scale: float
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result."""
    tokens, heads, _ = q.shape
    first_position = int(first_position)
    group = heads // pages.shape[1]
    out = torch.empty_like(q)
    for start in range(0, tokens, _TILE):
        stop = min(start + _TILE, tokens)
        for head in range(pages.shape[1]):
            members = slice(head * group, (head + 1) * group)
            rows = _Rows(q[start:stop, members], scale, first_position + start)
            order, edges = _by_block(blocks[head, start:stop])
            for block, begin, end in edges:
                page = pages[page_table[block], head]
                rows.attend(order[begin:end], page[0], page[1], block)
            out[start:stop, members] = rows.result().to(q.dtype)
    return out


def _by_block(blocks: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """For blocks [T, K], -1 padded: queries sorted by the block they read, and (block, start, stop) of its run."""
    query, column = (blocks >= 0).nonzero(as_tuple=True)
    read, order = blocks[query, column].sort(stable=True)
    counts = torch.bincount(read)
    found = counts.nonzero()[:, 0]
    counts = counts[found]
    ends = counts.cumsum(0)
    return query[order], list(zip(found.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))


class _Rows:
    """The queries [T, G, D] of one kv head with their softmax so far: largest logit, sum, weighted values."""

    def __init__(self, q: Tensor, scale: float, first_position: int) -> None:
        wide = torch.promote_types(q.dtype, torch.float32)
        self._q = q.to(wide) * scale
        self._first = first_position
        self._peak = torch.full(q.shape[:2], -torch.inf, dtype=wide, device=q.device)
        self._total = torch.zeros(q.shape[:2], dtype=wide, device=q.device)
        self._sum = torch.zeros_like(self._q)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, block: int) -> None:
        """Let `queries` [n], rising, read one block, keys and values [B, D]."""
        size, dim = keys.shape
        keys, values = keys.to(self._q.dtype), values.to(self._q.dtype)
        first, last = int(queries[0]), int(queries[-1])
        # The window's blocks are read by runs of neighbours, which need no gathering.
        where = slice(first, last + 1) if last - first + 1 == len(queries) else queries
        asked = self._q[where]
        logits = (asked.reshape(-1, dim) @ keys.T).view(*asked.shape[:2], size)
        if (block + 1) * size - 1 > self._first + first:
            offsets = torch.arange(size, device=keys.device) + block * size
            logits.masked_fill_((offsets > queries[:, None] + self._first)[:, None], -torch.inf)
        before = self._peak[where]
        peak = torch.maximum(before, logits.amax(-1))
        weights = logits.sub_(peak[..., None]).exp_()
        fade = (before - peak).exp_()
        self._total[where] = self._total[where] * fade + weights.sum(-1)
        read = (weights.view(-1, size) @ values).view_as(asked)
        self._sum[where] = torch.addcmul(read, self._sum[where], fade[..., None])
        self._peak[where] = peak

    def result(self) -> Tensor:
        """[T, G, D], at least float32."""
        return self._sum / self._total[..., None]
