"""Attention of a chunk over a context that comes in pieces: each by itself, and what was read added up.

Knows no scores and no memory. Of a context in one piece this is the op itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from salalocal.cache.attention_memory import Piece
from salalocal_kernels import sparse_attention_decode, sparse_attention_prefill


def attend_in_pieces(q: Tensor, blocks: Tensor, pieces: Iterable[Piece], first_position: int, scale: float) -> Tensor:
    """Attention of queries over their selected blocks.

    Args:
        q: [T, H, D]; row r is the token at first_position + r.
        blocks: int32 [Hkv, T, K], ascending, -1 padded; the last piece has every query's own.
        pieces: have every block together, and each block once.
        first_position: absolute.
        scale: factor on q . k.

    Returns:
        [T, H, D], dtype of q.
    """
    out: Tensor | None = None
    wide = torch.promote_types(q.dtype, torch.float32)
    lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
    # To the end: behind its last piece a memory asks for what comes next.
    for piece in pieces:
        pages, table = piece.pages, piece.page_table
        if piece.is_whole:
            out = _whole(q, blocks, piece, first_position, scale)
        else:
            span = piece.first, piece.stop
            out = sparse_attention_prefill(q, pages, table, blocks, first_position, scale, lse, out, span)
    assert out is not None
    return out.to(q.dtype)


def _whole(q: Tensor, blocks: Tensor, piece: Piece, first: int, scale: float) -> Tensor:
    """What is read of the only piece."""
    pages, table = piece.pages, piece.page_table
    if len(q) == 1:
        return sparse_attention_decode(q[0], pages, table, blocks[:, 0], first + 1, scale)[None]
    return sparse_attention_prefill(q, pages, table, blocks, first, scale)
