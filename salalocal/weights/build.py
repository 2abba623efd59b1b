"""From a source of tensors to a network: what must be there, checked before anything is allocated, then read."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.errors import BadCheckpoint
from salalocal.model.feed_forward import FeedForward
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.network import Layer, Network
from salalocal.model.sparse_layer import SparseLayer
from salalocal.weights.source import WeightSource
from salalocal_kernels import lightning_slopes
from salalocal_quant import DenseWeight


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor a checkpoint of `config` holds."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index, mixer in enumerate(config.mixer_types):
        at = f"model.layers.{index}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        mixer_shapes = _sparse_shapes(config) if mixer == "sparse" else _lightning_shapes(config)
        shapes |= {f"{at}self_attn.{name}.weight": shape for name, shape in mixer_shapes.items()}
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _sparse_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, kv = config.hidden_size, config.num_key_value_heads * config.sparse_head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (hidden, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, hidden),
    }
    if config.attn_use_output_gate:
        shapes["o_gate"] = (hidden, hidden)
    return shapes


def _lightning_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, dim = config.hidden_size, config.head_dim
    wide, kv = config.num_attention_heads * dim, config.lightning_nkv * dim
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj": (wide, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, wide),
    }
    if config.use_output_gate:
        shapes["z_proj"] = (wide, hidden)
    if config.qk_norm:
        shapes["q_norm"] = shapes["k_norm"] = (dim,)
    if config.use_output_norm:
        shapes["o_norm"] = (wide,)
    return shapes


def check_tensors(config: ModelConfig, source: WeightSource) -> None:
    """Compares headers with what `config` needs.

    Raises:
        BadCheckpoint: naming the first tensor that is missing, extra, wrong-shaped or not of a floating type.
    """
    expected = expected_tensors(config)
    for name, shape in expected.items():
        info = source.tensors.get(name)
        if info is None:
            raise BadCheckpoint(f"tensor {name!r} is missing ({len(source.tensors)} of {len(expected)} are there)")
        if info.shape != shape:
            raise BadCheckpoint(
                f"{info.file}: tensor {name!r} has shape {list(info.shape)}, config.json makes it {list(shape)}"
            )
        if not info.is_float:
            raise BadCheckpoint(f"{info.file}: tensor {name!r} is {info.dtype}, a floating type is needed")
    extra = sorted(set(source.tensors) - set(expected))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise BadCheckpoint(f"{source.tensors[extra[0]].file}: tensor {extra[0]!r}{more} has no place in the model")


def build_network(config: ModelConfig, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Network:
    """Reads every tensor of `source`, one at a time, and puts the network together.

    Raises:
        BadCheckpoint: headers do not fit the config, or a tensor holds NaN or Inf; nothing stays allocated.
    """
    check_tensors(config, source)
    reader = _Reader(source, dtype, device)
    embedding = reader.weight("model.embed_tokens")
    return Network(
        config=config,
        dtype=dtype,
        device=device,
        embedding=embedding,
        layers=tuple(_layer(config, index, reader) for index in range(config.num_hidden_layers)),
        final_norm=reader.tensor("model.norm"),
        head=embedding if config.tie_word_embeddings else reader.weight("lm_head"),
    )


class _Reader:
    """Reads tensors by their module's name, checked and converted."""

    def __init__(self, source: WeightSource, dtype: torch.dtype, device: torch.device) -> None:
        self._source, self.dtype, self.device = source, dtype, device

    def tensor(self, module: str) -> Tensor:
        name = module + ".weight"
        values = self._source.read(name)
        if not torch.isfinite(values).all():
            file = self._source.tensors[name].file
            raise BadCheckpoint(f"{file}: tensor {name!r} holds NaN or Inf; download the file again")
        return values.to(device=self.device, dtype=self.dtype)

    def weight(self, module: str) -> DenseWeight:
        return DenseWeight(self.tensor(module))


def _layer(config: ModelConfig, index: int, reader: _Reader) -> Layer:
    at = f"model.layers.{index}"
    make = _sparse_layer if config.mixer_types[index] == "sparse" else _lightning_layer
    return Layer(
        input_norm=reader.tensor(f"{at}.input_layernorm"),
        mixer=make(config, f"{at}.self_attn", reader),
        post_norm=reader.tensor(f"{at}.post_attention_layernorm"),
        feed_forward=FeedForward(
            gate_proj=reader.weight(f"{at}.mlp.gate_proj"),
            up_proj=reader.weight(f"{at}.mlp.up_proj"),
            down_proj=reader.weight(f"{at}.mlp.down_proj"),
        ),
    )


def _sparse_layer(config: ModelConfig, at: str, reader: _Reader) -> SparseLayer:
    return SparseLayer(
        config=config,
        q_proj=reader.weight(f"{at}.q_proj"),
        k_proj=reader.weight(f"{at}.k_proj"),
        v_proj=reader.weight(f"{at}.v_proj"),
        o_proj=reader.weight(f"{at}.o_proj"),
        o_gate=reader.weight(f"{at}.o_gate") if config.attn_use_output_gate else None,
    )


def _lightning_layer(config: ModelConfig, at: str, reader: _Reader) -> LightningLayer:
    wide = torch.promote_types(reader.dtype, torch.float32)
    return LightningLayer(
        config=config,
        q_proj=reader.weight(f"{at}.q_proj"),
        k_proj=reader.weight(f"{at}.k_proj"),
        v_proj=reader.weight(f"{at}.v_proj"),
        o_proj=reader.weight(f"{at}.o_proj"),
        z_proj=reader.weight(f"{at}.z_proj") if config.use_output_gate else None,
        q_norm=reader.tensor(f"{at}.q_norm") if config.qk_norm else None,
        k_norm=reader.tensor(f"{at}.k_norm") if config.qk_norm else None,
        o_norm=reader.tensor(f"{at}.o_norm") if config.use_output_norm else None,
        slopes=torch.tensor(lightning_slopes(config.num_attention_heads), dtype=wide, device=reader.device),
    )
