"""Scores, selection and attention by themselves, as a text of a given length asks for them. Knows no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal.bench.clock import milliseconds
from salalocal.cache.attention_memory import Piece
from salalocal.config import ModelConfig
from salalocal.model.pieces import attend_in_pieces
from salalocal.model.sparse_layer import tile_tokens
from salalocal_kernels import block_scores, select_blocks

_TIMED_QUERIES = 1024
# Tiles of a chunk that are tried, from either end: kernels are compiled for numbers divisible by 16 apart.
_TRIED_TILES = 2


def scoring_seconds(config: ModelConfig, tokens: int) -> float:
    """What scores and selection add to a text of N tokens on the current GPU, by N^2, in bfloat16.

    Timed on some queries behind `tokens` others; a query's work grows with what is before it, so on average it is half.
    """
    keys = _Keys(config, tokens, torch.bfloat16, torch.device("cuda"))
    with torch.inference_mode():
        seconds = milliseconds(lambda: keys.select(tokens - _TIMED_QUERIES, _TIMED_QUERIES)) / 1e3
    return len(config.sparse_layers) * seconds / (_TIMED_QUERIES * tokens) / 2


def compile_scoring(
    config: ModelConfig, tokens: int, chunk_tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Scores and selects in some tiles of every chunk of a text, so that kernels are there before it is read.

    They are compiled anew as a text grows: for twice as many blocks, for longer runs of keys, for fewer queries.
    """
    assert config.sparse is not None
    keys = _Keys(config, tokens, dtype, device)
    with torch.inference_mode():
        for start in range(0, tokens, chunk_tokens):
            end = min(start + chunk_tokens, tokens)
            tile = tile_tokens(-(-end // config.sparse.block_size))
            firsts = range(start, end, tile)
            for first in sorted({*firsts[:_TRIED_TILES], *firsts[-_TRIED_TILES:]}):
                keys.select(first, min(tile, end - first))


def compile_pieces(config: ModelConfig, chunk_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
    """Reads a made-up context in two pieces, as those come that exceed a buffer."""
    heads, dim, count = config.num_key_value_heads, config.sparse_head_dim, -(-chunk_tokens // config.block_size)
    assert config.sparse is not None
    pages = torch.zeros(count, heads, 2, config.block_size, dim, dtype=dtype, device=device)
    q = torch.zeros(chunk_tokens, config.num_attention_heads, dim, dtype=dtype, device=device)
    blocks = torch.full((heads, chunk_tokens, config.sparse.selected_blocks), -1, dtype=torch.int32, device=device)
    blocks[..., 0] = 0
    table, middle = torch.arange(count, device=device), count // 2
    pieces = [Piece(pages, table, *span, is_whole=False) for span in ((0, middle), (middle, count))]
    with torch.inference_mode():
        attend_in_pieces(q, blocks, pieces, 0, dim**-0.5)


class _Keys:
    """Made-up compressed keys of so many tokens."""

    def __init__(self, config: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        assert config.sparse is not None
        self._config, self._sparse = config, config.sparse
        self._dtype, self._device = dtype, device
        stride = self._sparse.kernel_stride
        self._strides = (stride, 4 * stride)
        self._levels = [self._drawn(config.num_key_value_heads, tokens // stride) for stride in self._strides]

    def _drawn(self, some: int, others: int) -> Tensor:
        return torch.randn(some, others, self._config.sparse_head_dim, dtype=self._dtype, device=self._device)

    def select(self, first: int, queries: int) -> Tensor:
        """The blocks that made-up queries from position `first` on pick."""
        sparse, end = self._sparse, first + queries
        q = self._drawn(queries, self._config.num_attention_heads)
        # A window is twice its stride long.
        fine, coarse = (
            level[:, : max(0, end // stride - 1)] for level, stride in zip(self._levels, self._strides, strict=True)
        )
        scale, blocks = self._config.sparse_head_dim**-0.5, -(-end // sparse.block_size)
        scores = block_scores(q, fine, coarse, first, scale, sparse.kernel_stride, sparse.block_size, blocks)
        return select_blocks(
            scores, first, sparse.block_size, sparse.init_blocks, sparse.local_blocks, sparse.selected_blocks
        )
