"""Two layers of the released sizes on the meta device, where tensors have shapes and no numbers, or with zeros for
numbers on another. Knows no test."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.model.feed_forward import FeedForward
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.network import Layer, Network
from salalocal.model.sparse_layer import SparseLayer
from salalocal_kernels import Planes
from salalocal_quant import Int8Weight, PlanesWeight, together

META = torch.device("meta")


def config() -> ModelConfig:
    """One attention and one lightning layer of the released model."""
    small = ModelConfig.from_json(Path(__file__).parents[2] / "golden/models/m4/config.json")
    return replace(
        small, hidden_size=4096, num_hidden_layers=2, mixer_types=small.mixer_types[:2], num_attention_heads=32,
        num_key_value_heads=2, head_dim=128, lightning_nkv=32, intermediate_size=16384, vocab_size=73448,
    )  # fmt: skip


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16, device: torch.device = META) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def planes(rows: int, columns: int, bits: int, device: torch.device = META) -> PlanesWeight:
    words = empty(rows, columns * bits // 32, dtype=torch.int32, device=device)
    return PlanesWeight(Planes(words, empty(rows, columns // 128, device=device), None, bits, 128))


def network(device: torch.device = META) -> Network:
    """The default recipe: 4 bits, but 8 for what decides selection, for gates and for the head."""
    sizes, hidden = config(), 4096
    make, zeros = partial(planes, device=device), partial(empty, device=device)
    feed_forward = FeedForward(
        together([make(16384, hidden, 4), make(16384, hidden, 4)], torch.device("cuda")), make(hidden, 16384, 4)
    )
    sparse = SparseLayer(
        sizes,
        together([make(rows, hidden, 8) for rows in (4096, 256, 256, 4096)], torch.device("cuda")),
        make(hidden, hidden, 4),
    )
    lightning = LightningLayer(
        sizes,
        together([*(make(4096, hidden, 4) for _ in range(3)), make(4096, hidden, 8)], torch.device("cuda")),
        make(hidden, hidden, 4),
        *(zeros(128), zeros(128), zeros(4096)),
        slopes=zeros(32, dtype=torch.float32),
    )
    norm = zeros(hidden)
    table = Int8Weight(zeros(73448, hidden, dtype=torch.int8), zeros(73448, hidden // 128), None, torch.bfloat16)
    layers = (Layer(norm, sparse, norm, feed_forward), Layer(norm, lightning, norm, feed_forward))
    return Network(sizes, torch.bfloat16, device, table, layers, norm, make(73448, hidden, 8))
