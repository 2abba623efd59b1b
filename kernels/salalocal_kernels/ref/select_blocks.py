"""The top-k of InfLLM-V2: which blocks each query reads."""

from __future__ import annotations

import torch
from torch import Tensor


def select_blocks(
    scores: Tensor, first_position: int | Tensor, block_size: int, init_blocks: int, local_blocks: int, k: int
) -> Tensor:
    """Picks the k best blocks of every query, initial and local blocks first, equal scores by lower index.

    Initial blocks (b < init_blocks) and the query's own block with the local_blocks before it are always taken and
    count against k. Blocks after the query's own are never taken, even if fewer than k are left.

    Args:
        scores: [Hkv, T, N] float32 or float64 from block_scores; infinities allowed, NaN not.
        first_position: absolute position of the first query; an int64 tensor of one element where only the device
            knows it (a captured graph), which this definition waits for.
        block_size: tokens per block.
        init_blocks, local_blocks: always read.
        k: blocks per query.

    Returns:
        int32 [Hkv, T, k], ascending, filled with -1 at the end.
    """
    kv_heads, tokens, num_blocks = scores.shape
    device = scores.device
    first_position = int(first_position)
    blocks = torch.arange(num_blocks, device=device)
    own = (torch.arange(first_position, first_position + tokens, device=device) // block_size)[:, None]
    forced = (blocks < init_blocks) | ((blocks >= own - local_blocks) & (blocks <= own))
    # Only forced blocks are infinite: a score that overflowed must not take their place.
    ranked = scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill_(forced, torch.inf)
    taken = min(k, num_blocks)
    # torch.topk leaves the order of equal scores open (and on the CPU breaks it), so only its k-th value is used:
    # everything above is in, and of the equal ones those with the lowest index fill what is left.
    threshold = ranked.topk(taken, dim=-1).values[..., -1:]
    above = ranked > threshold
    equal = ranked == threshold
    room = taken - above.sum(-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(-1) <= room))
    chosen &= blocks <= own
    # Indices ascending, non-chosen ones sort to the end as num_blocks.
    index = torch.where(chosen, blocks.to(torch.int32), num_blocks)
    picked = torch.full((kv_heads, tokens, k), -1, dtype=torch.int32, device=device)
    ordered = index.topk(taken, dim=-1, largest=False, sorted=True).values
    picked[..., :taken] = torch.where(ordered == num_blocks, -1, ordered)
    return picked
