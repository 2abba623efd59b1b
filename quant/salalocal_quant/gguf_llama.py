"""Reads a Llama-architecture GGUF under the names and in the layout of Hugging Face's Llama.

Knows llama.cpp's keys and tensor names for `general.architecture` "llama" and the one layout difference:
llama.cpp rotates neighbouring pairs (2i, 2i+1), so its converter interleaves the rows of q and k; the
rotation used here pairs i with i + head_dim/2, so they are put back on reading. What a file asks for and
is not done here (rope scaling, experts, biases, partial rotation) is refused by name, never ignored.
Source: llama.cpp, convert_hf_to_gguf.py (LlamaModel.permute) and gguf-py/gguf/constants.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from salalocal_quant.gguf import GgufFile
from salalocal_quant.gguf_header import GgufError

_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MAX_LAYERS = 4096


class UnsupportedGguf(GgufError):
    """The file is sound, but asks for something that is not done here; the message names it."""


def llama_config(metadata: Mapping[str, object]) -> dict[str, int | float | bool | None]:
    """The plain values of the model, under the names of Hugging Face's LlamaConfig.

    Keys: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
    intermediate_size, vocab_size, rms_norm_eps, rope_theta, max_position_embeddings, bos_token_id,
    eos_token_id (None where the file has none). Whether the head is tied is seen in the tensors, not here
    (`llama_tensor_names`). Raises `UnsupportedGguf` naming the architecture or feature that is not done,
    `GgufError` naming the key that is missing, of the wrong type or out of range.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedGguf(f"general.architecture is {architecture!r}; of GGUF files only 'llama' models are read")
    _refuse_what_is_not_done(metadata)
    heads = _integer(metadata, "llama.attention.head_count", 1, 65536)
    hidden = _integer(metadata, "llama.embedding_length", 1, 1 << 20)
    if "llama.attention.key_length" not in metadata and hidden % heads:
        raise GgufError(
            f"llama.embedding_length {hidden} is not a multiple of llama.attention.head_count {heads}, "
            "and llama.attention.key_length is missing"
        )
    head_dim = _integer(metadata, "llama.attention.key_length", 1, 65536, default=hidden // heads)
    kv_heads = _integer(metadata, "llama.attention.head_count_kv", 1, 65536, default=heads)
    if heads % kv_heads:
        raise GgufError(f"llama.attention.head_count {heads} is not a multiple of head_count_kv {kv_heads}")
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if _integer(metadata, key, 1, 65536, default=head_dim) != head_dim:
            raise UnsupportedGguf(
                f"{key} is {metadata[key]!r} while a head has {head_dim} dimensions; only equal ones are done"
            )
    if head_dim % 2:
        raise GgufError(f"a head of {head_dim} dimensions cannot be rotated in pairs")
    tokens = metadata.get("tokenizer.ggml.tokens")
    n_tokens = len(tokens) if isinstance(tokens, list) and tokens else None
    return {
        "hidden_size": hidden,
        "num_hidden_layers": _integer(metadata, "llama.block_count", 1, _MAX_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _integer(metadata, "llama.feed_forward_length", 1, 1 << 22),
        "vocab_size": _integer(metadata, "llama.vocab_size", 1, 1 << 24, default=n_tokens),
        "rms_norm_eps": _real(metadata, "llama.attention.layer_norm_rms_epsilon", 1e-12, 1.0),
        "rope_theta": _real(metadata, "llama.rope.freq_base", 1.0, 1e12, default=10000.0),
        "max_position_embeddings": _integer(metadata, "llama.context_length", 1, 1 << 40),
        "bos_token_id": _optional_id(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _optional_id(metadata, "tokenizer.ggml.eos_token_id"),
    }


def llama_tensor_names(gguf: GgufFile) -> dict[str, str]:
    """Every tensor of the file: Hugging Face's name -> the GGUF's. No "lm_head.weight" means a tied head.

    Raises `UnsupportedGguf` for a tensor with no place in the model (biases, experts, rope factors), and
    `GgufError` for one that is missing.
    """
    n_layers = _integer(gguf.metadata, "llama.block_count", 1, _MAX_LAYERS)
    names = dict(_TOP)
    for layer in range(n_layers):
        for ours, theirs in _LAYER.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    if "output.weight" not in gguf.tensors:
        del names["lm_head.weight"]
    for theirs in names.values():
        if theirs not in gguf.tensors:
            raise GgufError(f"{gguf.path}: the tensor {theirs!r} is missing")
    wanted = set(names.values())
    for theirs in gguf.tensors:
        if theirs not in wanted:
            reason = "rope scaling is not done" if "rope" in theirs else "it has no place in a Llama model"
            raise UnsupportedGguf(f"{gguf.path}: the tensor {theirs!r} is not read: {reason}")
    return names


def read_llama_tensor(gguf: GgufFile, name: str, num_heads: int, num_kv_heads: int) -> torch.Tensor:
    """The tensor with Hugging Face's `name`: float32, contiguous, q and k rows in rotate-half order.

    Raises `GgufError` when it is missing, not readable, or its rows do not divide into the heads.
    """
    tensor = gguf.read(llama_tensor_name(name))
    for suffix, heads in (("self_attn.q_proj.weight", num_heads), ("self_attn.k_proj.weight", num_kv_heads)):
        if name.endswith(suffix):
            if tensor.ndim != 2 or tensor.shape[0] % (2 * heads):
                raise GgufError(f"{gguf.path}: {name} of shape {tuple(tensor.shape)} has not {heads} heads")
            return unpermute_rows(tensor, heads)
    return tensor


def llama_tensor_name(name: str) -> str:
    """The GGUF's name of Hugging Face's tensor `name`; raises `GgufError` for a name outside the model."""
    if name in _TOP:
        return _TOP[name]
    parts = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    if len(parts) != 2 or not parts[0].isdecimal() or parts[1] not in _LAYER:
        raise GgufError(f"a Llama model has no tensor {name!r}")
    return f"blk.{int(parts[0])}.{_LAYER[parts[1]]}.weight"


def unpermute_rows(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head from interleaved pairs (x0 y0 x1 y1 ...) to halves (x0 x1 ... y0 y1 ...).

    weight: [num_heads * head_dim, columns], any dtype. Returns a new contiguous tensor of the same shape.
    """
    rows, columns = weight.shape
    pairs = weight.view(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns).contiguous()


def _refuse_what_is_not_done(metadata: Mapping[str, object]) -> None:
    neutral: dict[str, tuple[object, ...]] = {
        "llama.rope.scaling.type": ("none",),
        "llama.rope.scaling.factor": (0.0, 1.0),
        "llama.rope.scale_linear": (0.0, 1.0),
        "llama.expert_count": (0,),
        "llama.attention.sliding_window": (0,),
        "llama.attention.causal": (True,),
        "llama.logit_scale": (0.0, 1.0),
        "llama.embedding_scale": (0.0, 1.0),
        "llama.residual_scale": (0.0, 1.0),
        "llama.attention.scale": (0.0,),
        "split.count": (0, 1),
    }
    for key, harmless in neutral.items():
        value = metadata.get(key, harmless[0])
        if not any(type(value) is type(one) and value == one for one in harmless):
            raise UnsupportedGguf(f"the file asks for {key} = {value!r}, which is not done here")


def _integer(metadata: Mapping[str, object], key: str, least: int, most: int, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]  # some writers give one head count per layer
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = "missing" if value is None else repr(value)[:80]
        raise GgufError(f"{key} is {shown}; it must be an integer within {least}..{most}")
    return value


def _real(metadata: Mapping[str, object], key: str, least: float, most: float, default: float | None = None) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, float) or not math.isfinite(value) or not least <= value <= most:
        shown = "missing" if value is None else repr(value)[:80]
        raise GgufError(f"{key} is {shown}; it must be a number within {least:g}..{most:g}")
    return value


def _optional_id(metadata: Mapping[str, object], key: str) -> int | None:
    return None if key not in metadata else _integer(metadata, key, 0, 1 << 24)
