"""What to time of the sparse layer's ops: released model, 8,192 queries at the end of 1M tokens, and one token.

Selections are replayed ones: neighbouring queries share 64 % of their free picks, replacements are drawn uniformly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from salalocal_kernels.gpu.block_scores import block_scores
from salalocal_kernels.gpu.select_blocks import select_blocks
from salalocal_kernels.gpu.sparse_attention_decode import sparse_attention_decode
from salalocal_kernels.gpu.sparse_attention_unions import sparse_attention_prefill
from salalocal_kernels.gpu.union_blocks import union_blocks

_BLOCK, _LOCAL, _K, _SHARED = 64, 32, 96, 0.64


def replayed(first: int, tokens: int, seed: int = 0) -> Tensor:
    """int32 [2, tokens, 96], ascending, each row with block 0 and the 33 up to its own, for first >= 2^13."""
    generator = torch.Generator().manual_seed(seed)
    free = _K - _LOCAL - 2
    rows = []
    for _ in range(2):
        liked = 1 + torch.randperm(first // _BLOCK - _LOCAL - 1, generator=generator)[:free]
        for token in range(tokens):
            own = (first + token) // _BLOCK
            while token:
                kept = liked[torch.rand(free, generator=generator) < _SHARED]
                fresh = 1 + torch.randint(own - _LOCAL - 1, (2 * free,), generator=generator)
                new = sorted(set(fresh[~torch.isin(fresh, kept)].tolist()))
                both = torch.cat([kept, torch.tensor(new, dtype=kept.dtype)])
                if len(both) >= free:
                    added = both[len(kept) :][torch.randperm(len(both) - len(kept), generator=generator)]
                    liked = torch.cat([kept, added[: free - len(kept)]])
                    break
            rows.append(torch.cat([torch.tensor([0]), liked, torch.arange(own - _LOCAL, own + 1)]).sort().values)
    return torch.stack(rows).view(2, tokens, _K).int()


def cases(length: int = 1 << 20, tokens: int = 8192) -> list[tuple[str, Callable[[], Any], int, int]]:
    """(name, what to time, bytes it has to move, FLOP that are useful); bf16 on the current GPU."""
    first, blocks, scale = length - tokens, length // _BLOCK, 128**-0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    q, k1, k2 = normal(tokens, 32, 128), normal(2, length // 16 - 1, 128), normal(2, length // 64 - 1, 128)
    pages = normal(2, 2, blocks, _BLOCK, 128).permute(2, 0, 1, 3, 4)
    table = torch.randperm(blocks, device="cuda")
    picked = replayed(first, tokens).cuda()
    newest = picked[:, -1].contiguous()
    scores = block_scores(q, k1, k2, first, scale, 16, _BLOCK, blocks)
    score = block_scores(q[-1:], k1, k2, length - 1, scale, 16, _BLOCK, blocks)
    compressed_bytes = (k1.numel() + k2.numel()) * 2
    compressed_flop = 2 * 16 * 128 * (k1.shape[1] + k2.shape[1]) * 2
    read_flop, read_bytes = 4 * 32 * 128 * _K * _BLOCK, 2 * _K * 2 * _BLOCK * 128 * 2
    return [
        (
            "block_scores",
            lambda: block_scores(q, k1, k2, first, scale, 16, _BLOCK, blocks),
            compressed_bytes + scores.nbytes,
            tokens * compressed_flop,
        ),
        ("select_blocks", lambda: select_blocks(scores, first, _BLOCK, 1, _LOCAL, _K), scores.nbytes, 0),
        ("union_blocks", lambda: union_blocks(picked, table, 4), picked.nbytes, 0),
        (
            "sparse_attention_prefill",
            lambda: sparse_attention_prefill(q, pages, table, picked, first, scale),
            # A query brings 36 % new free picks; the window's blocks come once.
            int(tokens * (1 - _SHARED) * 62 * read_bytes / _K) + q.nbytes * 2,
            tokens * read_flop,
        ),
        (
            "block_scores, one token",
            lambda: block_scores(q[-1:], k1, k2, length - 1, scale, 16, _BLOCK, blocks),
            compressed_bytes,
            compressed_flop,
        ),
        ("select_blocks, one token", lambda: select_blocks(score, length - 1, _BLOCK, 1, _LOCAL, _K), score.nbytes, 0),
        (
            "sparse_attention_decode",
            lambda: sparse_attention_decode(q[-1], pages, table, newest, length, scale),
            read_bytes,
            read_flop,
        ),
    ]
