"""What a step of a model cannot do without: bytes of a decode step, operations of a prefill chunk. Knows sizes only."""

from __future__ import annotations

from math import prod

from salalocal.config import ModelConfig
from salalocal.weights.layout import module_bytes, modules

# Rows are looked up in the one, and the other multiplies the last token only.
_ENDS = ("embed_tokens", "lm_head")
# Never rounded to 8 bits.
_SELECTING = ("sparse.q_proj", "sparse.k_proj")


def decode_bytes(config: ModelConfig, item_bytes: int, history: int) -> int:
    """Bytes that the step of one token moves: packed weights, states there and back, compressed keys, selected blocks.

    Args:
        config: a model whose attention is sparse at this length.
        item_bytes: of K, V and what is not packed.
        history: tokens read before.
    """
    sparse = config.sparse
    assert sparse is not None
    # Of the embedding one row is read, but all of it where it is the head too.
    read = [module for module in modules(config) if module.kind != "embed_tokens" or config.tie_word_embeddings]
    weights = sum(module_bytes(module, config, item_bytes) for module in read)
    state = config.num_attention_heads * config.head_dim**2 * max(item_bytes, 4)
    windows = sum(
        max(0, (history - size) // stride + 1)
        for size, stride in (
            (sparse.kernel_size, sparse.kernel_stride), (4 * sparse.kernel_size, 4 * sparse.kernel_stride)
        )
    )  # fmt: skip
    rows = windows + 2 * sparse.selected_blocks * sparse.block_size
    attention = len(config.sparse_layers) * config.num_key_value_heads * rows * config.sparse_head_dim * item_bytes
    return weights + 2 * len(config.lightning_layers) * state + attention


def narrow_flop(config: ModelConfig, tokens: int) -> int:
    """Operations of a chunk's products that prefill in 8 bits rounds: packed matrices but q and k of sparse layers."""
    quantization = config.quantization
    assert quantization is not None
    packed = {kind for kind, format in quantization.formats if format != "bf16"} - {*_ENDS, *_SELECTING}
    return 2 * tokens * sum(prod(module.shape) for module in modules(config) if module.kind in packed)


def prefill_flop(config: ModelConfig, history: int, tokens: int) -> int:
    """Operations of a chunk of `tokens` behind `history`: products with weights, scores, attention, states.

    Every query is counted as reading all the blocks that it may select, and scores only what it can see.
    """
    sparse = config.sparse
    assert sparse is not None
    matrices = sum(prod(module.shape) for module in modules(config) if module.kind not in (None, *_ENDS))
    channels = config.num_attention_heads * config.sparse_head_dim
    # A fine key every stride, a coarse one every four.
    keys_seen = tokens * (2 * history + tokens) * 5 // (8 * sparse.kernel_stride)
    keys_read = tokens * sparse.selected_blocks * sparse.block_size
    attention = len(config.sparse_layers) * channels * (2 * keys_seen + 4 * keys_read)
    states = len(config.lightning_layers) * 4 * tokens * config.num_attention_heads * config.head_dim**2
    return 2 * tokens * matrices + attention + states
