"""Sizes of the network that is trained, and the vendor-format config.json they become. Knows no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Geometry:
    """A MiniCPM-SALA network; names as in `config.json`. Lightning layers have as many heads as sparse ones."""

    vocab_size: int = 4096
    hidden_size: int = 512
    num_hidden_layers: int = 10
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    sparse_layers: tuple[int, ...] = (2, 5, 8)
    scale_emb: float = 12.0
    scale_depth: float = 1.4
    dim_model_base: int = 256
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32_768  # the longest sequence of the curriculum; no limit, for nothing here has one
    kernel_stride: int = 16
    block_size: int = 64
    window_size: int = 2048
    topk: int = 64
    dense_len: int = 8192
    init_blocks: int = 1
    tie_word_embeddings: bool = True

    @property
    def sparse_head_dim(self) -> int:
        """Head dimension of the sparse layers."""
        return self.hidden_size // self.num_attention_heads

    @property
    def residual_scale(self) -> float:
        """Factor on every branch before it joins the residual stream."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers)

    @property
    def logits_divisor(self) -> float:
        """The final hidden state is divided by this before the head."""
        return self.hidden_size / self.dim_model_base

    @property
    def decay_slopes(self) -> tuple[float, ...]:
        """-log of each lightning head's decay per token; the head count must be a power of two."""
        heads = self.num_attention_heads
        ratio = 2.0 ** -(2.0 ** -(math.log2(heads) - 3))
        return tuple(ratio ** (head + 1) for head in range(heads))

    @staticmethod
    def from_config(values: dict[str, object]) -> Geometry:
        """The geometry of a vendor config, for weights that this package or a test wrote."""
        sparse = values["sparse_config"]
        mixers = values["mixer_types"]
        assert isinstance(sparse, dict)
        assert isinstance(mixers, list)
        own = {name: values[name] for name in Geometry.__dataclass_fields__ if name in values}
        inner = {name: sparse[name] for name in Geometry.__dataclass_fields__ if name in sparse}
        layers = tuple(i for i, kind in enumerate(mixers) if kind == "minicpm4")
        return Geometry(**{**own, **inner, "sparse_layers": layers})

    def write_config(self, folder: Path, eos_token_ids: list[int], pad_token_id: int) -> None:
        """Write `config.json` in the vendor's format into `folder`."""
        config = {
            "architectures": ["MiniCPMSALAForCausalLM"],
            "model_type": "minicpm_sala",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "scale_emb": self.scale_emb,
            "scale_depth": self.scale_depth,
            "dim_model_base": self.dim_model_base,
            "mup_denominator": self.num_hidden_layers,
            "attn_use_rope": False,
            "lightning_use_rope": True,
            "qk_norm": True,
            "use_output_gate": True,
            "use_output_norm": True,
            "attn_use_output_gate": True,
            "lightning_nh": self.num_attention_heads,
            "lightning_nkv": self.num_attention_heads,
            "lightning_head_dim": self.head_dim,
            "lightning_scale": "1/sqrt(d)",
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "pretraining_tp": 1,
            "use_cache": True,
            "mixer_types": [
                "minicpm4" if layer in self.sparse_layers else "lightning-attn"
                for layer in range(self.num_hidden_layers)
            ],
            "sparse_config": {
                "kernel_size": 2 * self.kernel_stride,
                "kernel_stride": self.kernel_stride,
                "init_blocks": self.init_blocks,
                "block_size": self.block_size,
                "window_size": self.window_size,
                "topk": self.topk,
                "dense_len": self.dense_len,
                "use_nope": False,
            },
            "bos_token_id": None,
            "eos_token_id": eos_token_ids,
            "pad_token_id": pad_token_id,
            "torch_dtype": "bfloat16",
            "initializer_range": 0.02,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


TINY = Geometry(
    vocab_size=4096,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=16,
    intermediate_size=96,
    sparse_layers=(1, 3),
    dim_model_base=32,
)
"""For smoke tests on a CPU."""
