"""What fits where, computed before anything is allocated. Knows sizes only: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.config import ModelConfig
from salalocal.weights.layout import weight_bytes

# What a product with a packed matrix holds at most while it is unpacked in slices.
_DEQUANTIZE_BYTES = 256 << 20


@dataclass(frozen=True)
class Footprint:
    """Bytes a loaded model and its contexts take.

    Attributes:
        weight_bytes: all tensors.
        token_bytes: K/V and compressed keys per token of context.
        session_bytes: linear states of one session, whatever its length.
        workspace_bytes: largest temporaries of one chunk.
    """

    weight_bytes: int
    token_bytes: float
    session_bytes: int
    workspace_bytes: int

    def context_bytes(self, tokens: int) -> int:
        """Bytes of one session of `tokens` tokens, weights left out."""
        return int(self.token_bytes * tokens) + self.session_bytes + self.workspace_bytes

    def longest_context(self, available_bytes: int) -> int:
        """Tokens of one session that fit into `available_bytes` beside the weights already loaded; 0 if none."""
        left = available_bytes - self.session_bytes - self.workspace_bytes
        return max(0, int(left / self.token_bytes)) if self.token_bytes else max(0, left) and 1 << 40


def footprint(config: ModelConfig, item_bytes: int, chunk_tokens: int, *, unpack: bool = False) -> Footprint:
    """Computes the footprint of `config` with activations, K/V and unpacked weights of `item_bytes` each.

    Args:
        config: the model.
        item_bytes: 2 for bfloat16, 4 for float32, 8 for float64.
        chunk_tokens: tokens of a prefill chunk.
        unpack: packed matrices are turned into plain ones when they are read.
    """
    channels = config.num_key_value_heads * config.sparse_head_dim
    per_layer: float = 2 * channels * item_bytes
    if config.sparse is not None:
        stride = config.sparse.kernel_stride
        per_layer += channels * item_bytes * (1 / stride + 1 / (4 * stride))
    state = config.num_attention_heads * config.head_dim**2 * max(item_bytes, 4)
    # Storage grows by an eighth beyond need, and the states of a chunk exist before and after it.
    token_bytes = len(config.sparse_layers) * per_layer * 1.125
    keeps_packed = config.quantization is not None and not unpack
    widest = max(config.intermediate_size * 2, config.hidden_size * 4) + config.hidden_size * 3
    return Footprint(
        weight_bytes=weight_bytes(config, item_bytes, unpacked=unpack),
        token_bytes=token_bytes,
        session_bytes=2 * len(config.lightning_layers) * state,
        workspace_bytes=min(chunk_tokens, 4096) * widest * max(item_bytes, 4)
        + (256 << 20)
        + (_DEQUANTIZE_BYTES if keeps_packed else 0),
    )
