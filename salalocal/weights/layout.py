"""Which tensors a model's files hold, and the bytes they take in memory. Knows sizes only: no torch, no files.

A matrix of the network is one tensor `<module>.weight`, or packed as `<module>.qweight`, `<module>.scales` and, with
zero points, `<module>.zeros`. The layouts themselves are those of `salalocal_quant`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from salalocal.config import ModelConfig
from salalocal.quantization import Format

_ITEM_BYTES = {"I32": 4, "I8": 1, "U8": 1, "BF16": 2}


@dataclass(frozen=True)
class Module:
    """One weight of the network.

    Attributes:
        name: what its tensors' names begin with.
        kind: what `quantization.py` calls its likes; None for a norm.
        shape: [N, K] of a matrix, [n] of a norm.
    """

    name: str
    kind: str | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """What a file must hold under a name; `dtype` is safetensors' word, None for any floating one."""

    shape: tuple[int, ...]
    dtype: str | None


def modules(config: ModelConfig) -> tuple[Module, ...]:
    """Every weight of the network, in the order in which it is used."""
    hidden = config.hidden_size
    listed = [Module("model.embed_tokens", "embed_tokens", (config.vocab_size, hidden))]
    for index in range(config.num_hidden_layers):
        listed += _layer_modules(config, index)
    listed.append(Module("model.norm", None, (hidden,)))
    if not config.tie_word_embeddings:
        listed.append(Module("lm_head", "lm_head", (config.vocab_size, hidden)))
    return tuple(listed)


def _layer_modules(config: ModelConfig, index: int) -> Iterator[Module]:
    at, hidden, inner = f"model.layers.{index}", config.hidden_size, config.intermediate_size
    mixer = config.mixer_types[index]
    yield Module(f"{at}.input_layernorm", None, (hidden,))
    for name, shape in (_sparse_shapes if mixer == "sparse" else _lightning_shapes)(config).items():
        yield Module(f"{at}.self_attn.{name}", f"{mixer}.{name}" if len(shape) == 2 else None, shape)
    yield Module(f"{at}.post_attention_layernorm", None, (hidden,))
    for name, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        yield Module(f"{at}.mlp.{name}", f"mlp.{name}", shape)


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


def tensors_of(module: Module, config: ModelConfig) -> dict[str, TensorSpec]:
    """The tensors that hold a module in the files of `config`, by name."""
    format = _format_of(module, config)
    if config.quantization is None or format == "bf16":
        return {f"{module.name}.weight": TensorSpec(module.shape, None)}
    rows, columns = module.shape
    groups = (rows, columns // config.quantization.group_size)
    codes = TensorSpec((rows, columns // 8), "I32") if format == "int4" else TensorSpec((rows, columns), "I8")
    found = {f"{module.name}.qweight": codes, f"{module.name}.scales": TensorSpec(groups, "BF16")}
    if format == "int4" and config.quantization.zero_point:
        found[f"{module.name}.zeros"] = TensorSpec(groups, "U8")
    return found


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Name, shape and dtype of every tensor the files of `config` hold."""
    return {name: spec for module in modules(config) for name, spec in tensors_of(module, config).items()}


def parameter_count(config: ModelConfig) -> int:
    """Numbers in all weights, packed or not; a tied head counts once."""
    return sum(prod(module.shape) for module in modules(config))


def module_bytes(module: Module, config: ModelConfig, item_bytes: int) -> int:
    """Bytes of one module as it is stored, with `item_bytes` for an element that is not packed."""
    return sum(
        prod(spec.shape) * (item_bytes if spec.dtype is None else _ITEM_BYTES[spec.dtype])
        for spec in tensors_of(module, config).values()
    )


def weight_bytes(config: ModelConfig, item_bytes: int, *, unpacked: bool = False) -> int:
    """Bytes of all weights in memory; a tied head counts once.

    Args:
        config: the model.
        item_bytes: of an element that is not packed: 2 for bfloat16, 4 for float32, 8 for float64.
        unpacked: packed matrices are turned into plain ones when they are read.
    """
    if unpacked:
        return parameter_count(config) * item_bytes
    return sum(module_bytes(module, config, item_bytes) for module in modules(config))


def table_bytes(config: ModelConfig, item_bytes: int, *, unpacked: bool = False) -> int:
    """The embedding table's part of `weight_bytes`."""
    table = modules(config)[0]
    return prod(table.shape) * item_bytes if unpacked else module_bytes(table, config, item_bytes)


def _format_of(module: Module, config: ModelConfig) -> Format:
    if module.kind is None or config.quantization is None:
        return "bf16"
    return config.quantization.format_of(module.kind)
