"""A model of a few kilobytes with every kind of matrix, written anew for each test that asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from salalocal.config import ModelConfig
from salalocal.weights.layout import modules
from salalocal.weights.safetensors_writer import write_safetensors

CONFIG: Mapping[str, Any] = {
    "model_type": "minicpm_sala",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 192,
    "vocab_size": 61,
    "max_position_embeddings": 4096,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 64,
    "mixer_types": ["minicpm4", "lightning-attn", "lightning-attn"],
    "sparse_config": {
        "kernel_size": 8,
        "kernel_stride": 4,
        "init_blocks": 1,
        "block_size": 16,
        "window_size": 32,
        "topk": 2,
        "dense_len": 64,
    },
    "eos_token_id": 2,
}


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """make_model(name="plain", dtype=bfloat16, **changed config fields) -> folder with random weights."""

    def make(name: str = "plain", dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        generator = torch.Generator().manual_seed(7)
        tensors = {
            f"{module.name}.weight": torch.randn(module.shape, generator=generator).mul(0.1).to(dtype)
            + (0 if module.kind else 1)
            for module in modules(ModelConfig.from_json(folder / "config.json"))
        }
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return folder

    return make
