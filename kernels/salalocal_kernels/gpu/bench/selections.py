"""Made selections: what a reading's neighbouring queries share of the blocks that they pick. Knows no scores.

Published figures for a similar model are that neighbouring queries of a prefill share 64 % of their free picks, and
consecutive steps of decoding 87 %; the others are drawn uniformly from the visible blocks. The first block and the
local window are read by every query.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK, LOCAL, PICKS = 64, 32, 96
REPLAYED_SHARE = 0.64
REPLAYED_STEP_SHARE = 0.87


def selection(
    first: int,
    tokens: int,
    shared: float,
    kv_heads: int = 2,
    seed: int = 0,
    *,
    block: int = BLOCK,
    local: int = LOCAL,
    picks: int = PICKS,
) -> Tensor:
    """int32 [Hkv, tokens, picks], each row ascending: block 0, the free picks, and the local + 1 up to its own.

    Args:
        first: absolute position of the first query; at least twice as many blocks as picks lie before it.
        tokens: queries.
        shared: of a query's free picks, so large a share is kept from the query before.
        kv_heads: that select by themselves.
        seed: of what is drawn.
        block, local, picks: tokens per block, blocks of the window, blocks per query; those of the released model.
    """
    rng = np.random.default_rng(seed)
    free = picks - local - 2
    assert first >= 2 * picks * block
    picked = np.empty((kv_heads, tokens, picks), np.int32)
    for head in range(kv_heads):
        liked = rng.choice(first // block - local - 1, free, replace=False) + 1
        for token in range(tokens):
            own = (first + token) // block
            if token:
                kept = liked[rng.random(free) < shared]
                # More than are needed, since some come twice or were there before.
                fresh = np.setdiff1d(rng.integers(1, own - local, 4 * free), liked)
                liked = np.concatenate([kept, rng.permutation(fresh)[: free - len(kept)]])
            picked[head, token] = np.sort(np.concatenate([[0], liked, np.arange(own - local, own + 1)]))
    return torch.from_numpy(picked)
