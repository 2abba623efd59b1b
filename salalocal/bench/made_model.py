"""A model of the released sizes with made-up weights, and a history it never read. Knows no clock.

Weights are drawn on the device, one tensor at a time and as they lie in files, and go through the same reader as those
of a real model. So they are packed and merged as theirs, nothing is read from disk, and no matrix is ever there
unpacked. What such a model says means nothing; how long it takes does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from salalocal.cache.session_cache import SessionCache
from salalocal.cache.tiered_store import TieredStore
from salalocal.config import ModelConfig
from salalocal.model.network import Network
from salalocal.planner import footprint
from salalocal.quantization import best_group_size, recipe
from salalocal.weights.build import build_network
from salalocal.weights.layout import expected_tensors
from salalocal.weights.source import TensorInfo

_SPARSE_LAYERS = (0, 9, 16, 17, 22, 29, 30, 31)
# The vendor's config.json of MiniCPM-SALA, as far as it decides what is computed.
_RELEASED: dict[str, object] = {
    "model_type": "minicpm_sala", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 16384, "vocab_size": 73448,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 524288, "scale_emb": 12,
    "scale_depth": 1.4, "dim_model_base": 256, "attn_use_rope": False, "attn_use_output_gate": True,
    "lightning_use_rope": True, "lightning_nkv": 32, "lightning_scale": "1/sqrt(d)", "qk_norm": True,
    "use_output_gate": True, "use_output_norm": True, "tie_word_embeddings": False,
    "mixer_types": ["minicpm4" if layer in _SPARSE_LAYERS else "lightning-attn" for layer in range(32)],
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                      "window_size": 2048, "topk": 64, "dense_len": 8192},
}  # fmt: skip

# Root mean square of what `MadeSource` draws for a code: -8 to 7, and -127 to 127.
_CODE_RMS = {"I32": math.sqrt(21.5), "I8": math.sqrt(127 * 128 / 3)}
_HISTORY_SLICE_TOKENS = 1 << 16


def released_config() -> ModelConfig:
    """MiniCPM-SALA's sizes, packed as `salalocal quantize` packs them by default."""
    return packed(ModelConfig.from_fields(_RELEASED, "the released config.json"))


def packed(config: ModelConfig) -> ModelConfig:
    """The same model in the default int4 recipe."""
    columns = config.matrix_columns
    return replace(config, quantization=recipe("int4", columns, best_group_size(columns.values()), zero_point=False))


class MadeSource:
    """A `WeightSource` that draws what it is asked for.

    Outputs of every matrix are about as large as its inputs, and norms are 1, so activations stay finite.

    Args:
        config: whose tensors; int4 groups without zero points.
        device: where they are drawn, and stay.
        seed: the same numbers for the same seed and device.

    Attributes:
        tensors: every tensor of the config.
        files: none.
    """

    def __init__(self, config: ModelConfig, device: torch.device, seed: int) -> None:
        self._specs = expected_tensors(config)
        floats = (None, "BF16")
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo("made up", spec.shape, spec.dtype or "BF16", spec.dtype in floats)
            for name, spec in self._specs.items()
        }
        self.files: Sequence[Path] = ()
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def read(self, name: str) -> Tensor:
        """The tensor, drawn anew."""
        spec = self._specs[name]
        if spec.dtype == "I32":
            rows, words = spec.shape
            return self._integers(0, 256, (rows, 4 * words), torch.uint8).view(torch.int32)
        if spec.dtype == "I8":
            return self._integers(-127, 128, spec.shape, torch.int8)
        if spec.dtype == "BF16":
            return self._scales(name, spec.shape)
        if len(spec.shape) == 1:
            return torch.ones(spec.shape, device=self._device)
        return torch.randn(spec.shape, device=self._device, generator=self._generator) / math.sqrt(spec.shape[1])

    def _integers(self, low: int, stop: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randint(low, stop, shape, dtype=dtype, device=self._device, generator=self._generator)

    def _scales(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Of one size, and of either sign: codes of 4 bits have a mean, which would add up along a row."""
        codes = self._specs[name.removesuffix("scales") + "qweight"]
        assert codes.dtype is not None
        columns = codes.shape[1] * (8 if codes.dtype == "I32" else 1)
        signs = self._integers(0, 2, shape, torch.int8).to(torch.bfloat16) * 2 - 1
        return signs / (_CODE_RMS[codes.dtype] * math.sqrt(columns))


def make_network(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int = 0, *, is_lean: bool = False
) -> Network:
    """A network of made-up weights, packed where `config` packs them, and lean as `load` makes it under a cap."""
    sizes = footprint(config, dtype.itemsize, 1, is_lean=is_lean)
    return build_network(
        config, MadeSource(config, device, seed), dtype, device,
        feed_channels=sizes.feed_channels, has_host_table=sizes.has_host_table,
    )  # fmt: skip


def make_history(
    config: ModelConfig,
    tokens: int,
    room: int,
    dtype: torch.dtype,
    device: torch.device,
    tiers: TieredStore | None = None,
) -> SessionCache:
    """A session's memory of `tokens` tokens that nobody read: random K, V and states; compressed keys are true means.

    Args:
        config: the model.
        tokens: the memory's length.
        room: tokens there is storage for at once, more than `tokens`.
        dtype: of K and V.
        device: where everything is.
        tiers: where K and V are in host memory.
    """
    cache = SessionCache.empty(config, dtype, device, tiers)
    cache.prepare_step(room, room)
    cache.extend(tokens)
    heads, dim = config.num_key_value_heads, config.sparse_head_dim
    generator = torch.Generator(device).manual_seed(tokens)

    def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    for index in range(len(config.sparse_layers)):
        layer = cache.attention(index)
        for start in range(0, tokens, _HISTORY_SLICE_TOKENS):
            count = min(_HISTORY_SLICE_TOKENS, tokens - start)
            layer.append(start, *(drawn(count, heads, dim, dtype=dtype) for _ in range(2)))
    cache.commit(tokens, [drawn(*state.shape, dtype=state.dtype) for state in cache.states])
    return cache
