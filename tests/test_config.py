"""ModelConfig: every field missing, of the wrong type, out of range or contradicting another is refused by name."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path

import pytest

from salalocal.config import ModelConfig
from salalocal.errors import BadConfig, UnsupportedFormat

GOLDEN = Path(__file__).parent / "golden" / "models"
RELEASED: dict[str, object] = {
    "model_type": "minicpm_sala", "hidden_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 16384, "vocab_size": 73448,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu",
    "max_position_embeddings": 524288, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256,
    "mup_denominator": 32, "attn_use_rope": False, "lightning_use_rope": True, "qk_norm": True,
    "use_output_gate": True, "use_output_norm": True, "attn_use_output_gate": True, "lightning_nh": 32,
    "lightning_nkv": 32, "lightning_head_dim": 128, "lightning_scale": "1/sqrt(d)", "tie_word_embeddings": False,
    "attention_bias": False, "mixer_types": ["minicpm4", "lightning", "lightning_attn", "lightning-attn"],
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                      "window_size": 2048, "topk": 64, "dense_len": 8192, "use_nope": False},
    "bos_token_id": 1, "eos_token_id": [2, 73440],
}  # fmt: skip


def read(values: dict[str, object]) -> ModelConfig:
    return ModelConfig.from_fields(values, "here.json")


def changed(name: str, value: object) -> dict[str, object]:
    """RELEASED with one field changed, `sparse_config.x` for a nested one; `...` removes it."""
    values = copy.deepcopy(RELEASED)
    at = values
    *sections, last = name.split(".")
    for section in sections:
        inner = at[section]
        assert isinstance(inner, dict)
        at = inner
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return values


def test_the_released_sizes() -> None:
    config = read(RELEASED)
    assert config.sparse_head_dim == 128
    assert config.residual_scale == pytest.approx(1.4 / math.sqrt(4))
    assert config.logits_divisor == 16
    assert config.mixer_types == ("sparse", "lightning", "lightning", "lightning")
    assert (config.sparse_layers, config.lightning_layers) == ((0,), (1, 2, 3))
    assert config.lightning_scale == pytest.approx(128**-0.5)
    assert config.eos_token_ids == (2, 73440)
    assert config.block_size == 64
    assert config.rope_positions is None, "no positions on attention layers: no limit"
    assert config.sparse is not None
    assert (config.sparse.local_blocks, config.sparse.selected_blocks) == (32, 96)
    assert config.notes == ()


@pytest.mark.parametrize("model", sorted(path.name for path in GOLDEN.iterdir()))
def test_golden_models_read_without_a_note(model: str) -> None:
    assert ModelConfig.from_json(GOLDEN / model / "config.json").notes == ()


REQUIRED = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "scale_depth", "dim_model_base", "mixer_types", "sparse_config.kernel_size",
    "sparse_config.kernel_stride", "sparse_config.init_blocks", "sparse_config.block_size",
    "sparse_config.window_size", "sparse_config.topk", "sparse_config.dense_len",
]  # fmt: skip
INTEGERS = [
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings", "dim_model_base", "lightning_nh", "lightning_nkv", "lightning_head_dim",
    *(name for name in REQUIRED if name.startswith("sparse_config")),
]  # fmt: skip
NUMBERS = ["rms_norm_eps", "rope_theta", "scale_emb", "scale_depth"]
BOOLEANS = [
    "attn_use_rope", "attn_use_output_gate", "lightning_use_rope", "qk_norm", "use_output_gate", "use_output_norm",
    "tie_word_embeddings", "attention_bias", "sparse_config.use_nope",
]  # fmt: skip
NESTED = json.loads("[" * 400 + "]" * 400)


def refuse(name: str, value: object) -> None:
    with pytest.raises(BadConfig, match=re.escape(f"here.json: field {name} ")) as refused:
        read(changed(name, value))
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [..., None], ids=["absent", "null"])
def test_missing(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value",
    ["32", 32.0, True, [32], {}, -1, 10**30, 10**3000, float("nan"), float("inf"), NESTED],
    ids=["string", "float", "bool", "list", "object", "negative", "huge", "absurd", "NaN", "inf", "nested"],
)
def test_integers_of_the_wrong_kind_or_size(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize(
    "name", [name for name in INTEGERS if not name.endswith(("init_blocks", "window_size", "len"))]
)
def test_sizes_of_zero(name: str) -> None:
    refuse(name, 0)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    ["1e-6", True, [1.0], {}, -1.0, 0, 1e30, 10**400, float("nan"), float("inf"), NESTED],
    ids=["string", "bool", "list", "object", "negative", "zero", "huge", "absurd", "NaN", "inf", "nested"],
)
def test_numbers_of_the_wrong_kind_or_size(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize("name", BOOLEANS)
@pytest.mark.parametrize("value", [0, 1, "false", [], {}, NESTED], ids=lambda value: str(value)[:9])
def test_switches_of_the_wrong_kind(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize("name", ["hidden_act", "lightning_scale"])
@pytest.mark.parametrize("value", ["gelu", "x" * 100_000, 1, [], NESTED], ids=lambda value: str(value)[:9])
def test_words_that_are_not_known(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [-1, 73448, 2.0, "2", True, [2, 73448], {"a": 2}, NESTED], ids=lambda v: str(v)[:9])
def test_token_ids_outside_the_vocabulary(name: str, value: object) -> None:
    refuse(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mixer_types", "minicpm4"),
        ("mixer_types", ["minicpm4"] * 3),
        ("mixer_types", ["minicpm4"] * 5),
        ("mixer_types", ["minicpm4", "mamba", "minicpm4", "minicpm4"]),
        ("mixer_types", ["minicpm4", 1, "minicpm4", "minicpm4"]),
        ("mixer_types", ["minicpm4", "x" * 100_000, "minicpm4", "minicpm4"]),
        ("hidden_size", 4097),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 64),
        ("lightning_nkv", 5),
        ("lightning_nh", 16),
        ("lightning_head_dim", 64),
        ("head_dim", 127),
        ("rope_scaling", {"type": "longrope"}),
        ("attention_bias", True),
        ("sparse_config", [1]),
        ("sparse_config", "none"),
        ("sparse_config.kernel_size", 16),
        ("sparse_config.block_size", 40),
        ("sparse_config.window_size", 2000),
        ("sparse_config.topk", 1),
        ("sparse_config.use_nope", True),
    ],
    ids=lambda value: str(value)[:30],
)
def test_contradictions(name: str, value: object) -> None:
    refuse(name, value)


def test_odd_heads_need_no_rope() -> None:
    values = changed("head_dim", 127) | {"lightning_head_dim": 127, "lightning_use_rope": False}
    assert read(values).head_dim == 127
    values = changed("hidden_size", 32 * 3) | {"attn_use_rope": True}
    with pytest.raises(BadConfig, match="field hidden_size gives heads of 3; RoPE needs an even"):
        read(values)


@pytest.mark.parametrize(
    "value", [..., None, "llama", 7, ["minicpm_sala"], "y" * 10**6, NESTED], ids=lambda v: str(v)[:9]
)
def test_other_architectures(value: object) -> None:
    with pytest.raises(UnsupportedFormat, match=r"here\.json: model_type is ") as refused:
        read(changed("model_type", value))
    assert len(str(refused.value)) < 250


def test_what_may_be_left_out() -> None:
    config = read({name: RELEASED[name] for name in RELEASED if name in REQUIRED or name == "model_type"})
    assert (config.head_dim, config.num_key_value_heads, config.lightning_nkv) == (128, 32, 32)
    assert config.sparse is None
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())
    assert config.block_size == 64


@pytest.mark.parametrize(("word", "factor"), [("1/sqrt(d)", 128**-0.5), ("1/d", 1 / 128), ("1", 1.0)])
def test_lightning_scales(word: str, factor: float) -> None:
    assert read(changed("lightning_scale", word)).lightning_scale == pytest.approx(factor)


def test_auto_map_is_noted_and_not_executed(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(trace)!r}, 'w')\n", encoding="utf-8")
    values = RELEASED | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Model"}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert ModelConfig.from_json(path).notes == (
        "auto_map names Python code in the model folder; it is never executed",
    )
    assert not trace.exists()


def test_unknown_fields_are_noted_in_safe_letters() -> None:
    values = changed("sparse_config.surprise", 1) | {"\x1b[2J": 0, "n" * 5000: 0}
    (note,) = read(values).notes
    assert "sparse_config.surprise" in note
    assert "\x1b" not in note
    assert len(note) < 300


def test_a_mutated_file_never_raises_anything_else(tmp_path: Path) -> None:
    text = json.dumps(RELEASED)
    path = tmp_path / "config.json"
    for cut in range(0, len(text), 7):
        path.write_text(text[:cut], encoding="utf-8")
        with pytest.raises((BadConfig, UnsupportedFormat)):
            ModelConfig.from_json(path)


LLAMA: dict[str, object] = {
    "hidden_size": 576, "num_hidden_layers": 3, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_llama_is_the_same_network_with_all_scalings_1() -> None:
    config = ModelConfig.llama(LLAMA, "x.gguf")
    assert config.mixer_types == ("sparse",) * 3
    assert config.residual_scale == pytest.approx(1.0)
    assert (config.logits_divisor, config.scale_emb) == (1.0, 1.0)
    assert config.sparse is None
    assert config.rope_positions == 8192, "RoPE on attention layers binds"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 577),
        ("hidden_size", 9 * 3),
        ("head_dim", 128),
        ("num_key_value_heads", 2),
        ("vocab_size", 0),
        ("rms_norm_eps", None),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("eos_token_id", 49152),
        ("max_position_embeddings", None),
    ],
    ids=str,
)
def test_llama_fields_are_checked_too(name: str, value: object) -> None:
    with pytest.raises(BadConfig, match=re.escape(f"x.gguf: field {name} ")):
        ModelConfig.llama(LLAMA | {name: value}, "x.gguf")
