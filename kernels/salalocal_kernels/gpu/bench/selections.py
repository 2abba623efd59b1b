"""Made selections: what a reading's neighbouring queries share of the blocks that they pick. Knows no scores.

A published figure for a similar model is that neighbouring queries of a prefill share 64 % of their free picks; the
others are drawn uniformly from the visible blocks. The first block and the local window are read by every query.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK, LOCAL, PICKS = 64, 32, 96
REPLAYED_SHARE = 0.64


def selection(first: int, tokens: int, shared: float, kv_heads: int = 2, seed: int = 0) -> Tensor:
    """int32 [Hkv, tokens, PICKS], each row ascending: block 0, the free picks, and the LOCAL + 1 up to its own.

    Args:
        first: absolute position of the first query; at least twice as many blocks as PICKS lie before it.
        tokens: queries.
        shared: of a query's free picks, so large a share is kept from the query before.
    """
    rng = np.random.default_rng(seed)
    free = PICKS - LOCAL - 2
    assert first >= 2 * PICKS * BLOCK
    picked = np.empty((kv_heads, tokens, PICKS), np.int32)
    for head in range(kv_heads):
        liked = rng.choice(first // BLOCK - LOCAL - 1, free, replace=False) + 1
        for token in range(tokens):
            own = (first + token) // BLOCK
            if token:
                kept = liked[rng.random(free) < shared]
                # More than are needed, since some come twice or were there before.
                fresh = np.setdiff1d(rng.integers(1, own - LOCAL, 4 * free), liked)
                liked = np.concatenate([kept, rng.permutation(fresh)[: free - len(kept)]])
            picked[head, token] = np.sort(np.concatenate([[0], liked, np.arange(own - LOCAL, own + 1)]))
    return torch.from_numpy(picked)
