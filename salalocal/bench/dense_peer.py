"""What long texts cost a dense model: the shapes of Qwen3-8B, made-up weights, plain PyTorch. Knows no clock.

A prompt is read in one shot, every query attending to every token before it through one of PyTorch's fused attention
backends. Whatever goes token by token (products, norms, RoPE) is done in slices, so that beside weights and K/V only
four tensors of the text's length are there.

    x = E[ids]
    for every layer:  x += W_o Attention(norm(x));  x += W_down (silu(W_gate norm(x)) * W_up norm(x))
    logits = W_head norm(x_last)

Source: Qwen3 technical report, and the model's config.json.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal["flash", "cudnn", "math"]

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_SLICE_TOKENS = 16384


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a dense Qwen3 model; those of Qwen3-8B by default."""

    layers: int = 36
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    feed_forward: int = 12288
    vocab: int = 151936
    rope_theta: float = 1e6
    eps: float = 1e-6

    @property
    def matrices(self) -> int:
        """Numbers of all weight matrices; the head is not the embedding."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward) + 2 * self.vocab * self.hidden

    def kv_bytes(self, tokens: int, item_bytes: int) -> int:
        """Bytes of K and V."""
        return 2 * self.layers * tokens * self.kv_heads * self.head_dim * item_bytes


@dataclass(frozen=True)
class DenseLayer:
    """Weights of a layer: W_q, W_k, W_v one below the other, W_gate and W_up likewise; norms are 1."""

    qkv: Tensor
    o_proj: Tensor
    gate_up: Tensor
    down: Tensor


class DensePeer:
    """A dense model of random weights that reads a prompt in one shot.

    Args:
        shape: its sizes.
        dtype: of weights, activations and K/V.
        device: where everything is.
        seed: of the weights.

    Attributes:
        kv: keys and values [T, Hkv, D] of every layer of the prompt read last, as answering would need them.
    """

    def __init__(self, shape: DenseShape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self.shape = shape
        self._dtype = dtype
        self._device = device
        generator = torch.Generator(device).manual_seed(seed)

        def matrix(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, dtype=dtype, device=device, generator=generator)
            return drawn.mul_(1 / math.sqrt(columns))

        inner, both = shape.heads * shape.head_dim, (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.embedding = matrix(shape.vocab, shape.hidden).mul_(math.sqrt(shape.hidden))
        self.layers = [
            DenseLayer(
                matrix(both, shape.hidden),
                matrix(shape.hidden, inner),
                matrix(2 * shape.feed_forward, shape.hidden),
                matrix(shape.hidden, shape.feed_forward),
            )
            for _ in range(shape.layers)
        ]
        self.head = matrix(shape.vocab, shape.hidden)
        self._hidden_norm = torch.ones(shape.hidden, dtype=dtype, device=device)
        self._head_norm = torch.ones(shape.head_dim, dtype=dtype, device=device)
        self.kv: list[tuple[Tensor, Tensor]] = []
        self._room: list[tuple[Tensor, Tensor]] = []

    def reserve(self, tokens: int) -> None:
        """Takes memory for K/V of so many tokens in all layers, in the place of what was taken before.

        So a prompt whose K/V cannot be held fails before anything is computed.

        Raises:
            torch.OutOfMemoryError: it is not there; none is held.
        """
        self.release()
        try:
            for _ in range(self.shape.layers):
                self._room.append((self._empty(tokens, self.shape.kv_heads), self._empty(tokens, self.shape.kv_heads)))
        except torch.OutOfMemoryError:
            self.release()
            raise

    def release(self) -> None:
        """Gives the memory of K/V back."""
        self.kv, self._room = [], []

    @torch.inference_mode()
    def read(self, ids: Tensor, backend: Backend) -> Tensor:
        """Reads a prompt anew; K/V of an earlier one are overwritten.

        Args:
            ids: int64 [T] on the device.
            backend: of the attention.

        Returns:
            logits [vocab] of the last token, float32.
        """
        shape, tokens = self.shape, ids.shape[0]
        if not self._room or self._room[0][0].shape[0] < tokens:
            self.reserve(tokens)
        self.kv = [(keys[:tokens], values[:tokens]) for keys, values in self._room]
        x = F.embedding(ids, self.embedding)
        cos, sin = self._rope(tokens)
        q = self._empty(tokens, shape.heads)
        for layer, (k, v) in zip(self.layers, self.kv, strict=True):
            for part in _slices(tokens):
                q[part], k[part], v[part] = self._queries_keys_values(layer, x[part], cos[part], sin[part])
            out = attend(q, k, v, backend).view(tokens, -1)
            for part in _slices(tokens):
                x[part] += F.linear(out[part], layer.o_proj)
                x[part] += self._feed_forward(layer, x[part])
            del out
        return F.linear(self._norm(x[-1:]), self.head)[0].float()

    def _empty(self, tokens: int, heads: int) -> Tensor:
        return torch.empty(tokens, heads, self.shape.head_dim, dtype=self._dtype, device=self._device)

    def _queries_keys_values(
        self, layer: DenseLayer, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        heads = F.linear(self._norm(x), layer.qkv).view(x.shape[0], -1, shape.head_dim)
        q, k, v = heads.tensor_split([shape.heads, shape.heads + shape.kv_heads], dim=1)
        q, k = (_rotated(F.rms_norm(part, (shape.head_dim,), self._head_norm, shape.eps), cos, sin) for part in (q, k))
        return q, k, v

    def _feed_forward(self, layer: DenseLayer, x: Tensor) -> Tensor:
        gate, up = F.linear(self._norm(x), layer.gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), layer.down)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.hidden,), self._hidden_norm, self.shape.eps)

    def _rope(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, 1, D / 2] in the activations' dtype."""
        half = self.shape.head_dim // 2
        inverse = self.shape.rope_theta ** (-torch.arange(half, dtype=torch.float64, device=self._device) / half)
        angles = (torch.arange(tokens, dtype=torch.float64, device=self._device)[:, None] * inverse)[:, None]
        return angles.cos().to(self._dtype), angles.sin().to(self._dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Backend) -> Tensor:
    """Causal attention of q [T, H, D] to k and v [T, Hkv, D] through one backend: [T, H, D].

    Where a backend takes no grouped heads, it is given k and v once for every head.

    Raises:
        RuntimeError: the device, the build or the shape has no such backend.
    """
    queries, keys, values = (part.transpose(0, 1)[None] for part in (q, k, v))
    with sdpa_kernel(_BACKENDS[backend]):
        try:
            out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            group = q.shape[1] // k.shape[1]
            keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
            out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return out[0].transpose(0, 1).contiguous()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def _slices(tokens: int) -> list[slice]:
    return [slice(start, min(start + _SLICE_TOKENS, tokens)) for start in range(0, tokens, _SLICE_TOKENS)]
