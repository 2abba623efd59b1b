"""Attention of a chunk over a context that comes in pieces: each by itself, and what was read added up.

Knows no scores and no memory. Of a context in one piece this is the op itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from salalocal.cache.attention_memory import Piece
from salalocal_kernels import sparse_attention_decode, sparse_attention_prefill

# Queries that attend to a piece at once: the float32 sums of more would take more memory than the rest of a chunk.
_TILE_TOKENS = 2048


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
    sums: list[_Sum] = []
    # To the end: behind its last piece a memory asks for what comes next.
    for piece in pieces:
        if piece.is_whole:
            whole = _whole(q, blocks, piece, first_position, scale)
            continue
        for number, start in enumerate(range(0, len(q), _TILE_TOKENS)):
            rows, picked = q[start : start + _TILE_TOKENS], blocks[:, start : start + _TILE_TOKENS]
            is_here = (picked >= piece.first) & (picked < piece.stop)
            part = _Sum.of(rows, torch.where(is_here, picked, -1), piece, first_position + start, scale)
            if number == len(sums):
                sums.append(part)
            else:
                sums[number].add(part)
            # Or it would be there beside the next one.
            del part
    if whole is not None:
        return whole
    out = torch.empty_like(q)
    for number, each in enumerate(sums):
        out[number * _TILE_TOKENS : (number + 1) * _TILE_TOKENS] = each.out
    return out


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
