"""How many bytes a saved session takes on the disk, from a config. No torch, no files.

What the folder holds is said in docs/architecture.md; headers and checksums, some thousandths of it, are left out.
"""

from __future__ import annotations

from salalocal.config import ModelConfig

# Prompts keep a checkpoint this often, so that going back never re-reads more than this.
CHECKPOINT_EVERY_TOKENS = 65536
# States of older checkpoints are thinned out beyond this.
CHECKPOINT_BUDGET_BYTES = 1 << 30

_ID_BYTES = 4


def saved_bytes(config: ModelConfig, item_bytes: int, tokens: int) -> int:
    """Bytes of a session that has read a prompt of `tokens` and nothing else.

    Args:
        config: the model.
        item_bytes: of K, V and compressed keys.
        tokens: at least 1.
    """
    channels = len(config.sparse_layers) * config.num_key_value_heads * config.sparse_head_dim
    keys = 0.0 if config.sparse is None else 1.25 / config.sparse.kernel_stride
    wide = max(item_bytes, 4)
    state = len(config.lightning_layers) * config.num_attention_heads * config.head_dim**2 * wide
    state += config.vocab_size * wide
    # Besides those in between: where the documents end, and where the prompt does.
    states = (tokens - 1) // CHECKPOINT_EVERY_TOKENS + 2
    # The one at the beginning is kept, and known.
    kept = max(1, max(2, CHECKPOINT_BUDGET_BYTES // state) - 1)
    return int(tokens * (_ID_BYTES + channels * item_bytes * (2 + keys)) + min(states, kept) * state)
