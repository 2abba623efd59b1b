"""Attention of a chunk over a context that comes in pieces: each by itself, and what was read added up.

Knows no scores and no memory. Of a context in one piece this is the op itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from salalocal.cache.attention_memory import Piece
from salalocal_kernels import sparse_attention_decode, sparse_attention_prefill


def attend_in_pieces(
    q: Tensor, blocks: Tensor, pieces: Iterable[Piece], first_position: int, scale: float, tile: int
) -> Tensor:
    """Attention of queries over their selected blocks.

    Args:
        q: [T, H, D]; row r is the token at first_position + r.
        blocks: int32 [Hkv, T, K], ascending, -1 padded; the last piece has every query's own.
        pieces: have every block together, and each block once.
        first_position: absolute.
        scale: factor on q . k.
        tile: queries that are attended at once where there are several pieces, whose sums are float32.

    Returns:
        [T, H, D], dtype of q.
    """
    sums: list[_Sum] = []
    for piece in pieces:
        if piece.is_whole:
            sums = [_Sum(_whole(q, blocks, piece, first_position, scale), None)]
            continue
        for number, start in enumerate(range(0, len(q), tile)):
            rows, picked, first = q[start : start + tile], blocks[:, start : start + tile], first_position + start
            is_here = (picked >= piece.first) & (picked < piece.stop)
            part = _Sum.of(rows, torch.where(is_here, picked, -1), piece, first, scale)
            if number == len(sums):
                sums.append(part)
            else:
                sums[number].add(part)
    outs = [each.out.to(q.dtype) for each in sums]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


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
        lse: [T, H], the log of the sum of weights; None where nothing is to be added.
    """

    def __init__(self, out: Tensor, lse: Tensor | None) -> None:
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
        assert self.lse is not None
        assert other.lse is not None
        # Of two that have read nothing either may go.
        share = torch.sigmoid(other.lse - self.lse).nan_to_num_(0.0)
        self.out.lerp_(other.out, share[..., None])
        self.lse = torch.logaddexp(self.lse, other.lse)
