"""The attention layer: InfLLM-V2 block-sparse from dense_len on, dense below. Knows no norms and no residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.attention_memory import AttentionMemory
from salalocal.config import ModelConfig
from salalocal.model.pieces import attend_in_pieces
from salalocal.model.span import Span
from salalocal.planner import TILE_SCORES
from salalocal_kernels import (
    block_scores,
    dense_attention,
    norm_gate,
    qk_norm_rope,
    select_blocks,
    sparse_attention_decode,
    token_mass,
)
from salalocal_quant import Projections, Weight

# Queries are scored and selected in tiles of so many; TILE_SCORES bounds queries x blocks whatever the chunk.
_TILE_TOKENS = 2048
# Whole rows of what kernels take at once, so that no tile ends in a few queries of its own.
_TILE_STEP = 128
# Rows of scores end at a multiple of so many blocks.
_ROW_STEP = 16


def tile_tokens(num_blocks: int) -> int:
    """Queries of a tile in a chunk that ends with so many blocks."""
    row = -(-num_blocks // _ROW_STEP) * _ROW_STEP
    tile = min(_TILE_TOKENS, TILE_SCORES // row)
    return max(1, tile - tile % _TILE_STEP if tile > _TILE_STEP else tile)


@dataclass(frozen=True)
class BlocksRead:
    """What an attention layer read for some tokens.

    Attributes:
        selected: int32 [Hkv, T, K], ascending, -1 padded; None where the call was dense.
        last_blocks, last_mass: the blocks of the last token, int32 [Hkv, K], and how its attention is shared out among
            their tokens, float32 [Hkv, K, B]; None where the span is not watched.
    """

    selected: Tensor | None
    last_blocks: Tensor | None = None
    last_mass: Tensor | None = None


@dataclass(frozen=True)
class SparseLayer:
    """Weights of one `minicpm4` layer (a Llama attention layer is one that is always dense).

    Attributes:
        config: sizes.
        inputs: W_q, W_k, W_v and, where the model has an output gate, W_o_gate [H d, h].
        o_proj: output projection.
    """

    config: ModelConfig
    inputs: Projections
    o_proj: Weight

    def __call__(self, y: Tensor, memory: AttentionMemory, span: Span) -> tuple[Tensor, BlocksRead]:
        """Mixes normed input y [T, h] with the context; returns [T, h] and what was read."""
        config, dim, eps = self.config, self.config.sparse_head_dim, self.config.rms_norm_eps
        q, k, v, *gates = self.inputs(y)
        q = q.view(span.tokens, config.num_attention_heads, dim)
        k = k.view(span.tokens, config.num_key_value_heads, dim)
        v = v.view(span.tokens, config.num_key_value_heads, dim)
        if span.attention_rope is not None:
            q, k = qk_norm_rope(q, k, None, None, eps, span.attention_rope)
        memory.append(span.first_position, k, v)
        scale = dim**-0.5
        blocks = self._select_all(q, memory, span, scale) if span.is_sparse else None
        # A dense token at a position that only the device knows looks at all blocks there may be.
        is_step = span.tokens == 1 and (span.is_sparse or isinstance(span.first_position, Tensor))
        read = BlocksRead(blocks)
        if is_step or span.is_watched:
            last = memory.every_block(span.length) if blocks is None else blocks[:, -1]
            pages, table = memory.fetched(last, span.length)
            if span.is_watched:
                read = BlocksRead(blocks, last, token_mass(q[-1], pages, table, last, span.length, scale))
        if is_step:
            out = sparse_attention_decode(q[0], pages, table, last, span.length, scale)[None]
        elif blocks is None:
            assert isinstance(span.first_position, int)
            assert isinstance(span.length, int)
            out = dense_attention(q, memory.context(span.length), span.first_position, scale)
        else:
            assert isinstance(span.first_position, int)
            out = attend_in_pieces(q, blocks, memory.pieces(blocks), span.first_position, scale)
        out = norm_gate(out.reshape(span.tokens, -1), None, gates[0] if gates else None, eps)
        return self.o_proj(out), read

    def _select_all(self, q: Tensor, memory: AttentionMemory, span: Span, scale: float) -> Tensor:
        """Scores and selects in tiles of queries: [Hkv, T, K]; the keys after a tile are in its future."""
        sparse = self.config.sparse
        assert sparse is not None
        selections = []
        tile = tile_tokens(memory.num_blocks(span.length))
        for start in range(0, span.tokens, tile):
            rows = q[start : start + tile]
            is_last = start + tile >= span.tokens
            first = span.first_position + start if start else span.first_position
            length = span.length if is_last else first + tile
            fine, coarse = memory.compressed_keys(length)
            num_blocks = memory.num_blocks(length)
            scores = block_scores(rows, fine, coarse, first, scale, sparse.kernel_stride, sparse.block_size, num_blocks)
            selections.append(self.select(scores, first))
            # So that they are not there twice.
            del scores
        return selections[0] if len(selections) == 1 else torch.cat(selections, dim=1)

    def select(self, scores: Tensor, first_position: int | Tensor) -> Tensor:
        """The blocks that queries from `first_position` on read: scores [Hkv, T, N] -> int32 [Hkv, T, K]."""
        sparse = self.config.sparse
        assert sparse is not None
        return select_blocks(
            scores, first_position, sparse.block_size, sparse.init_blocks, sparse.local_blocks, sparse.selected_blocks
        )

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """Every weight matrix."""
        return (*self.inputs.weights, self.o_proj)
