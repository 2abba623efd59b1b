"""Attention over selected blocks on a processor.

The queries of one block of text all read its window and the first block: those are one dense product. The rest is
taken block by block, each for all the queries that read it, which moves queries (2 KiB each at 8 heads of 64) instead
of blocks (32 KiB) and multiplies nothing that is masked afterwards.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from salalocal_kernels.cpu.block_lists import Readers, Shared, block_lists, split
from salalocal_kernels.cpu.team import run_all, team_size

# Logits that are there at once in a dense product; 1 MiB in float32, so that they stay in a core's cache.
_DENSE_LOGITS = 1 << 18
# Sums of weights above this mean that some block holds logits far above those shared; weights might overflow.
_LARGEST_SUM = 2.0**64


def sparse_attention_prefill(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, first_position: int | Tensor, scale: float
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result."""
    first_position = int(first_position)
    group = q.shape[1] // pages.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty_like(q)
    for head in range(pages.shape[1]):
        members = slice(head * group, (head + 1) * group)
        shared, readers = block_lists(blocks[head], first_position, pages.shape[3])
        # In powers of two: exp2 takes a third longer than exp, but exp 20 to 200 times as long for results below 1e-38.
        rows = _Rows(q[:, members].to(wide) * (scale * math.log2(math.e)), pages[:, head], page_table, first_position)
        run_all([partial(rows.read_shared, part) for part in shared])
        parts = split(readers, team_size())
        rows.read_others(parts)
        if not rows.is_in_range():
            run_all([partial(rows.read_shared, part) for part in shared])
            rows.raise_peaks(readers)
            rows.read_others(parts)
        out[:, members] = rows.result().to(q.dtype)
    return out


class _Rows:
    """The queries [T, G, D] of one kv head, in units of log2, and what they have read.

    Softmax weights are taken relative to a peak per query and head: the largest logit of the shared blocks. Logits of
    other blocks may be larger, as long as the sums stay in range.

    Args:
        q: [T, G, D], float32 or float64.
        pages: [P, 2, B, D].
        page_table: [N], the page of each block.
        first_position: of the first query.
    """

    def __init__(self, q: Tensor, pages: Tensor, page_table: Tensor, first_position: int) -> None:
        self._q = q.contiguous()
        self._keys, self._values = pages[:, 0], pages[:, 1]
        self._table = page_table
        self._page = page_table.tolist()
        self._first = first_position
        self._peak = q.new_empty(q.shape[:2])
        self._weights = q.new_empty(q.shape[:2])
        self._sums = torch.empty_like(self._q)

    def read_shared(self, part: Shared) -> None:
        """Sets the peaks and sums of some queries to those of the blocks they share, their own among them."""
        group, dim = self._q.shape[1:]
        pages = self._table[part.blocks]
        keys, values = (side[pages].reshape(-1, dim).to(self._q.dtype) for side in (self._keys, self._values))
        # Only the last of these blocks holds tokens after a query.
        offsets = torch.arange(self._keys.shape[1]) + int(part.blocks[-1]) * self._keys.shape[1] - self._first
        step = max(1, _DENSE_LOGITS // (group * len(keys)))
        for start in range(part.start, part.stop, step):
            stop = min(start + step, part.stop)
            logits = self._q[start:stop].view(-1, dim) @ keys.T
            last = logits.view(stop - start, group, -1)[..., -len(offsets) :]
            last.masked_fill_((offsets > torch.arange(start, stop)[:, None])[:, None], -torch.inf)
            peak = logits.amax(1, keepdim=True)
            logits.sub_(peak).exp2_()
            self._peak[start:stop] = peak.view(-1, group)
            self._weights[start:stop] = logits.sum(1).view(-1, group)
            torch.mm(logits, values, out=self._sums[start:stop].view(-1, dim))

    def read_others(self, parts: list[list[Readers]]) -> None:
        """Adds the blocks that are not shared; each part goes to one thread, with sums of its own."""
        sums = [(torch.zeros_like(self._weights), torch.zeros_like(self._sums)) for part in parts if part]
        run_all([partial(self._read_into, *into, part) for into, part in zip(sums, filter(None, parts), strict=True)])
        for weights, values in sums:
            self._weights += weights
            self._sums += values

    def _read_into(self, weights: Tensor, sums: Tensor, readers: list[Readers]) -> None:
        shape = self._q.shape[1:]
        for one in readers:
            logits = self._logits(one)
            logits.sub_(self._peak.index_select(0, one.queries).view(-1, 1)).exp2_()
            weights.index_add_(0, one.queries, logits.sum(1).view(-1, shape[0]))
            values = self._values[self._page[one.block]].to(logits.dtype)
            sums.index_add_(0, one.queries, (logits @ values).view(-1, *shape))

    def _logits(self, one: Readers) -> Tensor:
        """[n G, B]: all tokens of the block, which is before every reader's own."""
        asked = self._q.index_select(0, one.queries).view(-1, self._q.shape[2])
        return asked @ self._keys[self._page[one.block]].to(asked.dtype).T

    def is_in_range(self) -> bool:
        """Whether the weights add up to numbers that a float holds with room to spare."""
        return bool((self._weights <= _LARGEST_SUM).all())

    def raise_peaks(self, readers: list[Readers]) -> None:
        """Makes the peaks those of all blocks; the sums, so far of shared blocks, follow."""
        peak = self._peak.clone()
        for one in readers:
            found = self._logits(one).amax(1).view(-1, peak.shape[1])
            peak[one.queries] = torch.maximum(peak[one.queries], found)
        fade = (self._peak - peak).exp2_()
        self._peak = peak
        self._weights *= fade
        self._sums *= fade[..., None]

    def result(self) -> Tensor:
        """[T, G, D], dtype of q."""
        return self._sums / self._weights[..., None]
