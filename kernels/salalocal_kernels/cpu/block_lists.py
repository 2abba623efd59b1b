"""Who reads which block: what neighbours read together, and the readers of every other block. Knows no keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shared:
    """Queries start ... stop - 1, whose tokens are in one block of text, all read `blocks` [n] int64, ascending."""

    start: int
    stop: int
    blocks: Tensor


@dataclass(frozen=True)
class Readers:
    """Each of `blocks` [n] int64 is read by its row of `queries` [n, m] int64, padded with the number of queries."""

    blocks: Tensor
    queries: Tensor


def block_lists(blocks: Tensor, first_position: int, block_size: int, most: int) -> tuple[list[Shared], list[Readers]]:
    """Sorts every (query, block) once: under `Shared` where all queries of one block of text read it.

    Args:
        blocks: [T, K] int32, -1 padded; blocks after a query's own are left out.
        first_position: absolute position of the first query.
        block_size: tokens per block.
        most: elements of `Readers.queries`; more only where one block has more readers.
    """
    tokens = blocks.shape[0]
    own = torch.arange(first_position, first_position + tokens) // block_size
    num_blocks = int(own[-1]) + 1
    is_read = (blocks >= 0) & (blocks <= own[:, None])
    # Block-major, so that nonzero lists the readers of one block after another; what is not read goes to a last row.
    cell = torch.where(is_read, blocks, num_blocks) * tokens + torch.arange(tokens)[:, None]
    reads = torch.zeros(num_blocks + 1, tokens, dtype=torch.bool)
    reads.view(-1)[cell.view(-1)] = True
    reads = reads[:num_blocks]
    shared = []
    starts = [0, *range(block_size - first_position % block_size, tokens, block_size)]
    for start, stop in zip(starts, [*starts[1:], tokens], strict=True):
        columns = reads[:, start:stop]
        is_shared = columns.all(1)
        columns &= ~is_shared[:, None]
        shared.append(Shared(start, stop, is_shared.nonzero()[:, 0]))
    return shared, list(_readers(reads, most))


def _readers(reads: Tensor, most: int) -> Iterator[Readers]:
    """For reads [N, T] bool: blocks with about equally many readers together, as padding is computed like queries."""
    num_blocks, tokens = reads.shape
    block, query = reads.nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=num_blocks)
    starts = counts.cumsum(0) - counts
    order = counts.argsort(descending=True, stable=True)
    sizes = counts[order].tolist()
    at = 0
    while at < num_blocks and sizes[at]:
        stop = min(num_blocks, at + max(1, most // sizes[at]))
        taken = order[at:stop]
        taken = taken[counts[taken] > 0]
        column = torch.arange(sizes[at])
        index = (starts[taken][:, None] + column).clamp_(max=len(query) - 1)
        yield Readers(taken, torch.where(column < counts[taken][:, None], query[index], tokens))
        at = stop
