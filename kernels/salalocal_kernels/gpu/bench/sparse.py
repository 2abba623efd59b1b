"""The sparse layer's kernels at the released model's shape: a chunk of 8,192 queries behind a history, and one token.

32 query heads in 2 groups, 128 channels, in bfloat16. Knows no clock.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from salalocal_kernels.gpu.bench.cases import Case, Peer, Selection
from salalocal_kernels.gpu.bench.selections import BLOCK, LOCAL, PICKS, REPLAYED_SHARE, selection
from salalocal_kernels.gpu.block_scores import block_scores
from salalocal_kernels.gpu.select_blocks import select_blocks
from salalocal_kernels.gpu.sparse_attention_decode import sparse_attention_decode
from salalocal_kernels.gpu.sparse_attention_unions import sparse_attention_prefill

HEADS, KV_HEADS, DIM, STRIDE = 32, 2, 128, 16
SCALE = DIM**-0.5
CHUNK = 8192
_ATTENDED: tuple[tuple[int, Selection], ...] = (
    (1 << 15, "all-new"), (1 << 17, "replayed"), (1 << 20, "replayed"), (1 << 20, "all-new")
)  # fmt: skip


def cases() -> list[Case]:
    """Scores and choice, then attention, behind histories of 32K to 1M tokens."""
    found: list[Case] = []
    for history in (1 << 16, 1 << 18, 1 << 20):
        found += _choosing(history, CHUNK)
        found += _choosing(history, 1)
    for history, kind in _ATTENDED:
        found += attending(history, kind)
    return found


def _choosing(length: int, tokens: int) -> list[Case]:
    first, blocks = length - tokens, length // BLOCK
    q = _random(tokens, HEADS, DIM)
    fine, coarse = _random(KV_HEADS, length // STRIDE - 1, DIM), _random(KV_HEADS, length // (4 * STRIDE) - 1, DIM)
    score = partial(block_scores, q, fine, coarse, first, SCALE, STRIDE, BLOCK, blocks)
    scores = score()
    keys = fine.shape[1] + coarse.shape[1]
    shape, turns = f"{_tokens(tokens)} at {_history(length)}", 1 if tokens > 1 else 48
    select = partial(select_blocks, scores, first, BLOCK, 1, LOCAL, PICKS)
    moved = fine.nbytes + coarse.nbytes + scores.nbytes + q.nbytes
    return [
        Case("block_scores", shape, score, moved, 2 * tokens * HEADS * DIM * keys, turns=turns),
        Case("select_blocks", shape, select, scores.nbytes + KV_HEADS * tokens * PICKS * 4, turns=turns),
    ]


def attending(length: int, kind: Selection) -> list[Case]:
    """A chunk's queries over blocks of a history; replayed, one token's too."""
    first, blocks = length - CHUNK, length // BLOCK
    q = _random(CHUNK, HEADS, DIM)
    pages = _random(KV_HEADS, 2, blocks, BLOCK, DIM).permute(2, 0, 1, 3, 4)
    table = torch.randperm(blocks, device="cuda")
    shared = REPLAYED_SHARE if kind == "replayed" else 0.0
    picked = selection(first, CHUNK, shared).cuda()
    newest = picked[:, -1].contiguous()
    block_bytes, free = 2 * BLOCK * DIM * 2, PICKS - LOCAL - 2
    # A query brings its new free picks; the window's blocks and the first one come once.
    new_blocks = KV_HEADS * ((1 - shared) * CHUNK * free + CHUNK // BLOCK + LOCAL)
    flop = 4 * HEADS * DIM * PICKS * BLOCK
    prefill = partial(sparse_attention_prefill, q, pages, table, picked, first, SCALE)
    decode = partial(sparse_attention_decode, q[-1], pages, table, newest, length, SCALE)
    found = [
        Case(
            "sparse_attention_prefill", f"{_tokens(CHUNK)} at {_history(length)}", prefill,
            int(new_blocks * block_bytes) + 2 * q.nbytes, CHUNK * flop, selection=kind, peer=_dense(q, length),
        )
    ]  # fmt: skip
    if kind == "replayed":
        moved = KV_HEADS * PICKS * block_bytes
        found.append(Case("sparse_attention_decode", f"1 token at {_history(length)}", decode, moved, flop, turns=48))
    return found


def _dense(q: Tensor, length: int) -> Peer | None:
    """Every query over the whole history, where that takes no longer than a second."""

    def prepare() -> partial[Tensor]:
        keys, values = (_random(1, KV_HEADS, length, DIM) for _ in range(2))
        return partial(scaled_dot_product_attention, q.transpose(0, 1)[None], keys, values, enable_gqa=True)

    return None if length > 1 << 17 else Peer("PyTorch SDPA over all keys", prepare)


def _tokens(tokens: int) -> str:
    return f"{tokens:,} tokens" if tokens > 1 else "1 token"


def _history(length: int) -> str:
    return f"{length >> 10}K" if length < 1 << 20 else f"{length >> 20}M"


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)
