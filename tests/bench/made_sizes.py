"""A model of the released one's shape, small enough for a processor."""

from __future__ import annotations

from salalocal.bench.dense_peer import DenseShape
from salalocal.bench.made_model import packed
from salalocal.config import ModelConfig

# Blocks of 16; a query reads 8 of them: block 0, the window's 2 and its own, and 4 free picks.
BLOCK, PICKS, DENSE_LEN = 16, 8, 64
# A dense peer as small.
PEER_SHAPE = DenseShape(layers=2, hidden=48, heads=6, kv_heads=2, head_dim=8, feed_forward=80, vocab=97)


def small_config(mixers: str = "slls") -> ModelConfig:
    """In the default int4 recipe; `mixers` spells the layers, s(parse) or l(ightning)."""
    config: dict[str, object] = {
        "model_type": "minicpm_sala", "hidden_size": 128, "num_hidden_layers": len(mixers), "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256, "vocab_size": 300, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "max_position_embeddings": 4096, "scale_emb": 12, "scale_depth": 1.4,
        "dim_model_base": 32, "lightning_nkv": 4,
        "mixer_types": [{"s": "minicpm4", "l": "lightning-attn"}[letter] for letter in mixers],
        "sparse_config": {"kernel_size": 8, "kernel_stride": 4, "init_blocks": 1, "block_size": BLOCK,
                          "window_size": 2 * BLOCK, "topk": PICKS - 2, "dense_len": DENSE_LEN},
    }  # fmt: skip
    return packed(ModelConfig.from_fields(config, "a small config.json"))
