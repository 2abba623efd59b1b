"""The attention layer: InfLLM-V2 block-sparse from dense_len on, dense below. Knows no norms and no residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.session_cache import AttentionCache
from salalocal.config import ModelConfig
from salalocal.model.span import Span
from salalocal_kernels import (
    block_scores,
    dense_attention,
    rope,
    select_blocks,
    sparse_attention_decode,
    sparse_attention_prefill,
    token_mass,
)
from salalocal_quant import Weight

# Queries are scored, selected and attended in tiles of so many; the second bounds queries x blocks whatever the chunk.
_TILE_TOKENS = 2048
_TILE_SCORES = 1 << 24


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
        q_proj, k_proj, v_proj, o_proj: projections.
        o_gate: output gate [H d, h]; None where the model has none.
    """

    config: ModelConfig
    q_proj: Weight
    k_proj: Weight
    v_proj: Weight
    o_proj: Weight
    o_gate: Weight | None

    def __call__(self, y: Tensor, cache: AttentionCache, span: Span) -> tuple[Tensor, BlocksRead]:
        """Mixes normed input y [T, h] with the context; returns [T, h] and what was read."""
        config, dim = self.config, self.config.sparse_head_dim
        q = self.q_proj(y).view(span.tokens, config.num_attention_heads, dim)
        k = self.k_proj(y).view(span.tokens, config.num_key_value_heads, dim)
        v = self.v_proj(y).view(span.tokens, config.num_key_value_heads, dim)
        if config.attn_use_rope:
            q = rope(q, span.first_position, config.rope_theta)
            k = rope(k, span.first_position, config.rope_theta)
        cache.append(span.first_position, k, v)
        scale = dim**-0.5
        if span.is_sparse:
            out, blocks = self._sparse(q, cache, span, scale)
        else:
            out, blocks = dense_attention(q, cache.context(span.length), span.first_position, scale), None
        read = BlocksRead(blocks)
        if span.is_watched:
            last = self._every_block(span, q.device) if blocks is None else blocks[:, -1]
            mass = token_mass(q[-1], cache.pages, cache.page_table, last, span.length, scale)
            read = BlocksRead(blocks, last, mass)
        out = out.reshape(span.tokens, -1)
        if self.o_gate is not None:
            out = out * torch.sigmoid(self.o_gate(y))
        return self.o_proj(out), read

    def _every_block(self, span: Span, device: torch.device) -> Tensor:
        """int32 [Hkv, N]: all blocks of the context."""
        count = -(-span.length // self.config.block_size)
        everything = torch.arange(count, dtype=torch.int32, device=device)
        return everything.expand(self.config.num_key_value_heads, count)

    def _sparse(self, q: Tensor, cache: AttentionCache, span: Span, scale: float) -> tuple[Tensor, Tensor]:
        """Scores, selects and attends in tiles of queries; the keys after a tile are in its future."""
        sparse = self.config.sparse
        assert sparse is not None
        outs, selections = [], []
        tile = max(1, min(_TILE_TOKENS, _TILE_SCORES * sparse.block_size // span.length))
        for start in range(0, span.tokens, tile):
            rows = q[start : start + tile]
            first = span.first_position + start
            length = first + rows.shape[0]
            fine, coarse = cache.compressed_keys(length)
            num_blocks = -(-length // sparse.block_size)
            scores = block_scores(rows, fine, coarse, first, scale, sparse.kernel_stride, sparse.block_size, num_blocks)
            blocks = select_blocks(
                scores, first, sparse.block_size, sparse.init_blocks, sparse.local_blocks, sparse.selected_blocks
            )
            if rows.shape[0] == 1:
                out = sparse_attention_decode(rows[0], cache.pages, cache.page_table, blocks[:, 0], length, scale)[None]
            else:
                out = sparse_attention_prefill(rows, cache.pages, cache.page_table, blocks, first, scale)
            outs.append(out)
            selections.append(blocks)
        return torch.cat(outs), torch.cat(selections, dim=1)
