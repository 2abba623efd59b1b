"""The whole network over one run of tokens: embedding, layers, head. Knows no sessions, sampling or text.

    x = scale_emb * E[ids]
    for every layer:  x += r * Mixer(norm(x));  x += r * FeedForward(norm(x))        r = scale_depth / sqrt(layers)
    logits = W_head (norm(x) / (hidden / dim_model_base))

Source: the vendor's modeling file of MiniCPM-SALA (muP scalings as in MiniCPM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.session_cache import SessionCache
from salalocal.config import ModelConfig
from salalocal.model.feed_forward import FeedForward
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.span import Span
from salalocal.model.sparse_layer import BlocksRead, SparseLayer
from salalocal_kernels import rms_norm
from salalocal_quant import Weight

# Called with an attention layer's index and what it read.
ReadingRecorder = Callable[[int, BlocksRead], None]


@dataclass(frozen=True)
class Layer:
    """One layer: mixer and feed-forward, each behind its norm weight [h]."""

    input_norm: Tensor
    mixer: SparseLayer | LightningLayer
    post_norm: Tensor
    feed_forward: FeedForward


@dataclass(frozen=True)
class Network:
    """All weights of a model, ready to run.

    Attributes:
        config: sizes and scalings.
        dtype: of activations.
        device: where weights and activations are.
        embedding: [V, h].
        layers: in order.
        final_norm: [h].
        head: [V, h]; the embedding itself where they are tied.
    """

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    embedding: Weight
    layers: tuple[Layer, ...]
    final_norm: Tensor
    head: Weight

    def read(
        self,
        ids: Tensor,
        cache: SessionCache,
        is_sparse: bool,
        record: ReadingRecorder | None,
        is_watched: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Reads tokens after those of `cache`, whose length moves only when the caller commits them.

        Args:
            ids: [T] int64 on the device, T >= 1.
            cache: the session's memory; K/V and compressed keys of the T tokens are written past its length.
            is_sparse: whether attention layers select blocks.
            record: told what every attention layer read.
            is_watched: `record` is also told how the last token's attention is shared out.

        Returns:
            hidden [T, h]: the residual stream after the last layer, at least float32; and the linear states after
            these tokens, for `cache.commit`.
        """
        config = self.config
        span = Span(cache.length, ids.shape[0], is_sparse, is_watched)
        cache.extend(span.tokens)
        states: list[Tensor] = []
        attention_index = 0
        # The residual stream stays at least float32: rounding it to bfloat16 at every addition is the largest error
        # of a bfloat16 run, and moves block selections (docs/correctness.md has the figures).
        x = self.embedding.rows(ids).to(torch.promote_types(self.dtype, torch.float32)) * config.scale_emb
        for number, layer in enumerate(self.layers):
            y = rms_norm(x, layer.input_norm, config.rms_norm_eps)
            if isinstance(layer.mixer, SparseLayer):
                mixed, blocks_read = layer.mixer(y, cache.attention(attention_index), span)
                attention_index += 1
                if record is not None:
                    record(number, blocks_read)
            else:
                mixed, state = layer.mixer(y, cache.states[len(states)], span)
                states.append(state)
            x = x + mixed * config.residual_scale
            u = rms_norm(x, layer.post_norm, config.rms_norm_eps)
            x = x + layer.feed_forward(u) * config.residual_scale
        return x, states

    def logits(self, hidden: Tensor) -> Tensor:
        """Residual stream [T, h] -> logits [T, V], float32 (float64 in a float64 run)."""
        normed = rms_norm(hidden, self.final_norm, self.config.rms_norm_eps)
        return self.head(normed / self.config.logits_divisor).to(torch.promote_types(self.dtype, torch.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of all weight matrices (norms are negligible); a tied head counts once."""
        return sum(weight.nbytes for weight in self.matrices)

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """Every weight matrix; a tied head is there once."""
        weights: list[Weight] = [self.embedding]
        if self.head is not self.embedding:
            weights.append(self.head)
        for layer in self.layers:
            mixer, ffn = layer.mixer, layer.feed_forward
            gate = mixer.o_gate if isinstance(mixer, SparseLayer) else mixer.z_proj
            weights += [mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj, *([gate] if gate is not None else [])]
            weights += [ffn.gate_proj, ffn.up_proj, ffn.down_proj]
        return tuple(weights)
