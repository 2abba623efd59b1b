"""Attention over selected blocks on a processor.

The queries of one block of text all read its window and the first block: those are one dense product. The rest is
taken block by block, each for all the queries that read it, which moves queries (2 KiB each at 8 heads of 64) instead
of blocks (32 KiB) and multiplies nothing that is masked afterwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from salalocal_kernels.cpu.block_lists import Readers, Shared, block_lists
from salalocal_kernels.ref import attention

# Logits that are there at once: few enough for the caches of two cores (2 MiB in float32), and so many that each
# operation takes tenths of a millisecond, in which sharing it out among the cores is worth while.
_LOGITS = 1 << 19
# Queries at once, and at most so many times all blocks before them: a table says who reads what.
_QUERIES = 2048
_READS = 1 << 24
# Larger sums of weights mean that some block holds logits so far above the shared ones that weights might overflow.
_LARGEST_SUM = 2.0**96
# No weight is smaller than 2^this, which still vanishes beside 1: float32 products near 2^-126 and below take a
# processor many times as long, and salalocal-pocket's attention is so sharp that they took most of its time.
_SMALLEST = -100


def sparse_attention_prefill(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    blocks: Tensor,
    first_position: int | Tensor,
    scale: float,
    lse: Tensor | None = None,
    out: Tensor | None = None,
    span: tuple[int, int] | None = None,
) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result; with `lse` it is the definition itself, as nobody reads
    in pieces on a processor but tests."""
    if lse is not None:
        return attention.sparse_attention_prefill(q, pages, page_table, blocks, first_position, scale, lse, out, span)
    assert out is None
    assert span is None
    first, out = int(first_position), torch.empty_like(q)
    tile = max(1, min(_QUERIES, _READS // len(page_table)))
    for start in range(0, len(q), tile):
        taken = slice(start, start + tile)
        _attend(q[taken], pages, page_table, blocks[:, taken], first + start, scale, out[taken])
    return out


def _attend(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, first_position: int, scale: float, out: Tensor
) -> None:
    """Some queries at once."""
    group, size = q.shape[1] // pages.shape[1], pages.shape[3]
    wide = torch.promote_types(q.dtype, torch.float32)
    for head in range(pages.shape[1]):
        members = slice(head * group, (head + 1) * group)
        shared, readers = block_lists(blocks[head], first_position, size, _LOGITS // (group * size))
        # In powers of two: exp2 takes a third longer than exp, but exp 20 to 200 times as long for results below 1e-38.
        rows = _Rows(q[:, members].to(wide) * (scale * math.log2(math.e)), pages[:, head], page_table, first_position)
        for part in shared:
            rows.read_shared(part)
        for some in readers:
            rows.read_others(some)
        if not rows.is_in_range():
            for part in shared:
                rows.read_shared(part)
            rows.raise_peaks(readers)
            for some in readers:
                rows.read_others(some)
        out[:, members] = rows.result().to(q.dtype)


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
        tokens, group, dim = q.shape
        self._keys, self._values = pages[:, 0], pages[:, 1]
        self._table = page_table
        self._first = first_position
        # The last row stands for no query. The last channel is the peak, negative: a key whose last channel is 1 has
        # the logit relative to it.
        self._q = q.new_zeros(tokens + 1, group, dim + 1)
        self._q[:-1, :, :-1] = q
        self._weights = q.new_zeros(tokens + 1, group)
        self._sums = q.new_zeros(tokens + 1, group, dim)

    def read_shared(self, part: Shared) -> None:
        """Sets the peaks and sums of some queries to those of the blocks they share, their own among them."""
        group, dim = self._sums.shape[1:]
        pages = self._table[part.blocks]
        keys, values = (side[pages].reshape(-1, dim).to(self._q.dtype) for side in (self._keys, self._values))
        # Only the last of these blocks holds tokens after a query.
        offsets = torch.arange(self._keys.shape[1]) + int(part.blocks[-1]) * self._keys.shape[1] - self._first
        step = max(1, _LOGITS // (group * len(keys)))
        for start in range(part.start, part.stop, step):
            stop = min(start + step, part.stop)
            logits = self._q[start:stop, :, :-1].reshape(-1, dim) @ keys.T
            last = logits.view(stop - start, group, -1)[..., -len(offsets) :]
            later = (offsets > torch.arange(start, stop)[:, None])[:, None]
            last.masked_fill_(later, -torch.inf)
            peak = logits.amax(1, keepdim=True)
            logits.sub_(peak).clamp_(min=_SMALLEST).exp2_()
            last.masked_fill_(later, 0)
            self._q[start:stop, :, -1] = -peak.view(-1, group)
            self._weights[start:stop] = logits.sum(1).view(-1, group)
            torch.mm(logits, values, out=self._sums[start:stop].view(-1, dim))

    def read_others(self, some: Readers) -> None:
        """Adds blocks that are not shared, all of whose tokens are before their readers."""
        group, dim = self._sums.shape[1:]
        weights = self._logits(some).clamp_(min=_SMALLEST).exp2_()
        queries = some.queries.view(-1)
        self._weights.index_add_(0, queries, weights.sum(-1).view(-1, group))
        values = self._values[self._table[some.blocks]].to(weights.dtype)
        self._sums.index_add_(0, queries, torch.bmm(weights, values).view(-1, group, dim))

    def _logits(self, some: Readers) -> Tensor:
        """[n, m G, B], relative to the peaks."""
        keys = self._keys[self._table[some.blocks]].to(self._q.dtype)
        keys = torch.cat([keys, keys.new_ones(*keys.shape[:2], 1)], dim=2)
        asked = self._q.index_select(0, some.queries.view(-1)).view(len(keys), -1, keys.shape[2])
        return torch.bmm(asked, keys.transpose(1, 2))

    def is_in_range(self) -> bool:
        """Whether the weights add up to numbers that a float holds with room to spare."""
        return bool((self._weights[:-1] <= _LARGEST_SUM).all())

    def raise_peaks(self, readers: list[Readers]) -> None:
        """Makes the peaks those of all blocks; the sums, so far of shared blocks, follow."""
        excess = torch.zeros_like(self._weights)
        for some in readers:
            found = self._logits(some).amax(-1).view(-1, excess.shape[1])
            excess.scatter_reduce_(0, some.queries.view(-1, 1).expand_as(found), found, "amax")
        self._q[:-1, :, -1] -= excess[:-1]
        fade = excess.neg_().exp2_()
        self._weights *= fade
        self._sums *= fade[..., None]

    def result(self) -> Tensor:
        """[T, G, D], dtype of q."""
        return self._sums[:-1] / self._weights[:-1, :, None]
