"""Who reads which block: what neighbours read together, and the readers of every other block. Knows no keys."""

from __future__ import annotations

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
    """The queries [n] int64, rising, that read `block`."""

    block: int
    queries: Tensor


def block_lists(blocks: Tensor, first_position: int, block_size: int) -> tuple[list[Shared], list[Readers]]:
    """Sorts every (query, block) once: under `Shared` where all queries of one block of text read it.

    Args:
        blocks: [T, K] int32, -1 padded; blocks after a query's own are left out.
        first_position: absolute position of the first query.
        block_size: tokens per block.
    """
    tokens = blocks.shape[0]
    own = torch.arange(first_position, first_position + tokens) // block_size
    first, num_blocks = int(own[0]), int(own[-1]) + 1
    section = own - first
    sizes = torch.bincount(section)
    is_read = (blocks >= 0) & (blocks <= own[:, None])
    # Block-major, so that nonzero lists the readers of one block after another.
    cell = torch.where(is_read, blocks, num_blocks) * tokens + torch.arange(tokens)[:, None]
    reads = torch.zeros(num_blocks + 1, tokens, dtype=torch.bool)
    reads.view(-1)[cell.view(-1)] = True
    reads = reads[:num_blocks]
    starts = (sizes.cumsum(0) - sizes).tolist()
    spans = [(start, start + size) for start, size in zip(starts, sizes.tolist(), strict=True)]
    is_shared = torch.stack([reads[:, start:stop].all(1) for start, stop in spans])
    shared = [Shared(*span, row.nonzero()[:, 0]) for span, row in zip(spans, is_shared, strict=True)]
    reads &= ~is_shared.T[:, section]
    block, query = reads.nonzero(as_tuple=True)
    counts = torch.bincount(block, minlength=num_blocks)
    found = counts.nonzero()[:, 0]
    queries = query.split(counts[found].tolist())
    return shared, [Readers(*pair) for pair in zip(found.tolist(), queries, strict=True)]


def split(readers: list[Readers], parts: int) -> list[list[Readers]]:
    """Cuts the list into runs with about equally many queries, as a processor takes about as long for each."""
    total = sum(len(one.queries) for one in readers)
    runs: list[list[Readers]] = [[] for _ in range(parts)]
    done = 0
    for one in readers:
        runs[min(parts - 1, done * parts // max(1, total))].append(one)
        done += len(one.queries)
    return runs
