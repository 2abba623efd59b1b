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
    whole: Tensor | None = None
    found: _Sum | None = None
    # To the end: behind its last piece a memory asks for what comes next.
    for piece in pieces:
        if piece.is_whole:
            whole = _whole(q, blocks, piece, first_position, scale)
            continue
        is_here = (blocks >= piece.first) & (blocks < piece.stop)
        part = _Sum.of(q, torch.where(is_here, blocks, -1), piece, first_position, scale)
        if found is None:
            found = part
        else:
            found.add(part)
    if whole is not None:
        return whole
    assert found is not None
    return found.out.to(q.dtype)


def _whole(q: Tensor, blocks: Tensor, piece: Piece, first: int, scale: float) -> Tensor:
    """What is read of the only piece."""
    pages, table = piece.pages, piece.page_table
    if len(q) == 1:
        return sparse_attention_decode(q[0], pages, table, blocks[:, 0], first + 1, scale)[None]
    return sparse_attention_prefill(q, pages, table, blocks, first, scale)


class _Sum:
    """What queries have read so far, and the weight of it.

    Attributes:
        out: [T, H, D].
        lse: [T, H], the log of the sum of weights.
    """

    def __init__(self, out: Tensor, lse: Tensor) -> None:
        self.out = out
        self.lse = lse

    @staticmethod
    def of(q: Tensor, blocks: Tensor, piece: Piece, first: int, scale: float) -> _Sum:
        """What is read of one piece."""
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = torch.empty(q.shape[:2], dtype=wide, device=q.device)
        return _Sum(sparse_attention_prefill(q, piece.pages, piece.page_table, blocks, first, scale, lse), lse)

    def add(self, other: _Sum) -> None:
        """Takes in what was read of another piece."""
        # Of two that have read nothing either may go.
        share = torch.sigmoid(other.lse - self.lse).nan_to_num_(0.0)
        self.out.lerp_(other.out, share[..., None])
        self.lse = torch.logaddexp(self.lse, other.lse)
