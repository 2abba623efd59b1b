"""The whole network over one run of tokens: embedding, layers, head. Knows no sessions, sampling or text.

    x = scale_emb * E[ids]
    for every layer:  x += r * Mixer(norm(x));  x += r * FeedForward(norm(x))        r = scale_depth / sqrt(layers)
    logits = W_head (norm(x) / (hidden / dim_model_base))

Source: the vendor's modeling file of MiniCPM-SALA (muP scalings as in MiniCPM).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.session_cache import SessionCache
from salalocal.cache.step_memory import StepMemory
from salalocal.config import ModelConfig
from salalocal.model.feed_forward import FeedForward
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.span import Span
from salalocal.model.sparse_layer import BlocksRead, SparseLayer
from salalocal_kernels import add_rms_norm, rms_norm
from salalocal_quant import Embedding, Weight

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
    embedding: Embedding
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
            [T, h] for `logits`, and the linear states after these tokens, for `cache.commit`.
        """
        tokens = ids.shape[0]
        span = Span.of(self.config, cache.length, tokens, is_sparse, is_watched, self.dtype, self.device)
        cache.extend(tokens)
        # What stays is taken first, so that it does not lie between tensors that go.
        after = [torch.empty_like(state) for state in cache.states]
        return self._read(ids, cache, cache.states, after, span, record), after

    def step(
        self, ids: Tensor, memory: StepMemory, is_sparse: bool, record: ReadingRecorder | None, is_watched: bool = False
    ) -> Tensor:
        """Reads one token at a position that only the device knows, and waits for nothing.

        Args:
            ids: [1] int64 on the device.
            memory: K/V, compressed keys and its new states are written.
            is_sparse, record, is_watched: as for `read`.

        Returns:
            logits [V], as `logits` gives them.
        """
        span = Span.of(
            self.config, memory.position, 1, is_sparse, is_watched, self.dtype, self.device, length=memory.length
        )
        return self.logits(self._read(ids, memory, memory.states, memory.new_states, span, record))[0]

    def _read(
        self,
        ids: Tensor,
        memory: SessionCache | StepMemory,
        states: Sequence[Tensor],
        new_states: Sequence[Tensor],
        span: Span,
        record: ReadingRecorder | None,
    ) -> Tensor:
        eps, ratio = self.config.rms_norm_eps, self.config.residual_scale
        attention_index = lightning_index = 0
        # The residual stream stays at least float32: rounding it to bfloat16 at every addition is the largest error
        # of a bfloat16 run, and moves block selections (docs/correctness.md has the figures).
        x = self.embedding.embed(ids, self.config.scale_emb)
        y = rms_norm(x, self.layers[0].input_norm, eps)
        following = [*(layer.input_norm for layer in self.layers[1:]), self.final_norm]
        for number, (layer, next_norm) in enumerate(zip(self.layers, following, strict=True)):
            if isinstance(layer.mixer, SparseLayer):
                mixed, blocks_read = layer.mixer(y, memory.attention(attention_index), span)
                attention_index += 1
                if record is not None:
                    record(number, blocks_read)
                # What stays lies between tensors that go, and soon no large one fits beside it.
                del blocks_read
            else:
                mixed = layer.mixer(y, states[lightning_index], span, new_states[lightning_index])
                lightning_index += 1
            u = add_rms_norm(x, mixed, ratio, layer.post_norm, eps)
            # A long chunk's workspace is counted in tensors of its length.
            del mixed, y
            fed = layer.feed_forward(u)
            del u
            y = add_rms_norm(x, fed, ratio, next_norm, eps)
            del fed
        return y

    def logits(self, normed: Tensor) -> Tensor:
        """What `read` gives, [T, h] -> logits [T, V], float32 (float64 in a float64 run)."""
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
            weights += [*layer.mixer.matrices, *layer.feed_forward.matrices]
        return tuple(weights)
