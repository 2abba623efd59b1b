"""What a model is: every size and switch of its network, checked. Knows no torch.

`ModelConfig` follows the vendor's config.json of MiniCPM-SALA. Llama-architecture models are the same network
with every mixer a full-attention layer with RoPE and all scalings 1, so one class serves both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salalocal.errors import UnsupportedFormat
from salalocal.fields import Fields, read_json_object, shorten
from salalocal.quantization import KINDS, Quantization
from salalocal.sparse_config import SparseConfig

MixerType = Literal["sparse", "lightning"]

# config.json spells the lightning mixer in three ways.
_MIXERS: dict[str, MixerType] = {
    "minicpm4": "sparse",
    "lightning": "lightning",
    "lightning_attn": "lightning",
    "lightning-attn": "lightning",
}
_LIGHTNING_SCALES = ("1/sqrt(d)", "1/d", "1")
# Said nowhere else in the file and without effect on the result.
_IGNORED = (
    "architectures",
    "attention_dropout",
    "dtype",
    "initializer_range",
    "mup_denominator",
    "pad_token_id",
    "pretraining_tp",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of one network. Source of the SALA fields: the vendor's modeling file.

    Attributes not self-explanatory:
        mixer_types: one entry per layer.
        lightning_nkv: key/value heads of lightning layers (their query heads are num_attention_heads).
        head_dim: head dimension of lightning layers; that of sparse layers is `sparse_head_dim`.
        lightning_scale: factor on q k^T as a number.
        sparse: block selection; None where the attention layers are always dense.
        quantization: how the matrices are packed; None where they are plain.
        rope_positions: length up to which RoPE on attention layers was trained; None where they have none.
        notes: sentences about fields that were read over, for `salalocal show`.
    """

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    scale_emb: float
    scale_depth: float
    dim_model_base: int
    attn_use_rope: bool
    attn_use_output_gate: bool
    lightning_use_rope: bool
    lightning_nkv: int
    lightning_scale: float
    qk_norm: bool
    use_output_gate: bool
    use_output_norm: bool
    tie_word_embeddings: bool
    mixer_types: tuple[MixerType, ...]
    sparse: SparseConfig | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()

    @property
    def sparse_head_dim(self) -> int:
        """Head dimension of the attention layers."""
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
    def sparse_layers(self) -> tuple[int, ...]:
        """Indices of attention layers, the ones that keep K/V."""
        return tuple(i for i, kind in enumerate(self.mixer_types) if kind == "sparse")

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Indices of linear-attention layers, the ones that keep a state."""
        return tuple(i for i, kind in enumerate(self.mixer_types) if kind == "lightning")

    @property
    def block_size(self) -> int:
        """Tokens per K/V block."""
        return self.sparse.block_size if self.sparse else 64

    @property
    def rope_positions(self) -> int | None:
        """Trained length that binds; SALA's sparse layers carry no positions, so nothing binds there."""
        return self.max_position_embeddings if self.attn_use_rope else None

    @property
    def matrix_columns(self) -> dict[str, int]:
        """Length of a row of every kind of matrix the model has, by the names of `quantization.py`."""
        has = {
            "sparse": bool(self.sparse_layers),
            "lightning": bool(self.lightning_layers),
            "sparse.o_gate": self.attn_use_output_gate,
            "lightning.z_proj": self.use_output_gate,
            "lm_head": not self.tie_word_embeddings,
        }
        others = {"mlp.down_proj": self.intermediate_size, "lightning.o_proj": self.num_attention_heads * self.head_dim}
        return {
            kind: others.get(kind, self.hidden_size)
            for kind in KINDS
            if has.get(kind.split(".")[0], True) and has.get(kind, True)
        }

    @staticmethod
    def from_json(path: Path) -> ModelConfig:
        """Reads a vendor config.json. Raises BadConfig or UnsupportedFormat naming the field."""
        return ModelConfig.from_fields(read_json_object(path), str(path))

    @staticmethod
    def from_fields(values: Mapping[str, object], where: str) -> ModelConfig:
        """Checks the fields of a MiniCPM-SALA config; `where` is named in errors."""
        fields = Fields(values, where)
        if fields.raw("model_type") != "minicpm_sala":
            raise UnsupportedFormat(
                f"{where}: model_type is {shorten(fields.raw('model_type'))}; folders are read as 'minicpm_sala', "
                "Llama-architecture models as .gguf files"
            )
        heads = fields.integer("num_attention_heads", 1, 4096)
        hidden = fields.integer("hidden_size", 1, 1 << 17)
        if hidden % heads:
            fields.fail("hidden_size", f"is {hidden}, not a multiple of num_attention_heads {heads}")
        head_dim = fields.integer("head_dim", 1, 4096, default=hidden // heads)
        layers = fields.integer("num_hidden_layers", 1, 4096)
        vocab = fields.integer("vocab_size", 1, 1 << 24)
        attn_use_rope = fields.boolean("attn_use_rope", default=False)
        lightning_use_rope = fields.boolean("lightning_use_rope", default=True)
        for name, dim, rotated in (
            ("head_dim", head_dim, lightning_use_rope),
            ("hidden_size", hidden // heads, attn_use_rope),
        ):
            if rotated and dim % 2:
                fields.fail(name, f"gives heads of {dim}; RoPE needs an even head dimension")
        _check_unsupported(fields)
        eos = fields.token_ids("eos_token_id", vocab)
        bos = fields.token_ids("bos_token_id", vocab)
        sparse_fields = fields.section("sparse_config")
        packing = fields.section("quantization_config")
        config = ModelConfig(
            model_type="minicpm_sala",
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=_kv_heads(fields, "num_key_value_heads", heads),
            head_dim=head_dim,
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 21),
            vocab_size=vocab,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 0.1, default=1e-6),
            rope_theta=fields.number("rope_theta", 1.0, 1e12, default=10000.0),
            max_position_embeddings=fields.integer("max_position_embeddings", 1, 1 << 40),
            scale_emb=fields.number("scale_emb", 1e-6, 1e6, default=1.0),
            scale_depth=fields.number("scale_depth", 1e-6, 1e6),
            dim_model_base=fields.integer("dim_model_base", 1, 1 << 20),
            attn_use_rope=attn_use_rope,
            attn_use_output_gate=fields.boolean("attn_use_output_gate", default=True),
            lightning_use_rope=lightning_use_rope,
            lightning_nkv=_lightning_kv_heads(fields, heads, head_dim),
            lightning_scale=_lightning_scale(fields, head_dim),
            qk_norm=fields.boolean("qk_norm", default=True),
            use_output_gate=fields.boolean("use_output_gate", default=True),
            use_output_norm=fields.boolean("use_output_norm", default=True),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
            mixer_types=_mixers(fields, layers),
            sparse=SparseConfig.parse(sparse_fields) if sparse_fields else None,
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=eos,
            quantization=Quantization.parse(packing) if packing else None,
            notes=_notes(fields, sparse_fields),
        )
        if packing and config.quantization:
            config.quantization.check_fits(config.matrix_columns, packing)
        return config

    @staticmethod
    def llama(values: Mapping[str, object], where: str) -> ModelConfig:
        """A Llama network: all mixers dense attention with RoPE, scalings 1.

        Args:
            values: hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
                intermediate_size, vocab_size, rms_norm_eps, rope_theta, max_position_embeddings,
                tie_word_embeddings, bos_token_id, eos_token_id.
            where: the file, for errors.
        """
        fields = Fields(values, where)
        heads = fields.integer("num_attention_heads", 1, 4096)
        hidden = fields.integer("hidden_size", 1, 1 << 17)
        if hidden % (2 * heads):
            fields.fail("hidden_size", f"is {hidden}, not an even multiple of num_attention_heads {heads}")
        head_dim = fields.integer("head_dim", 2, 4096, default=hidden // heads)
        if head_dim != hidden // heads:
            fields.fail("head_dim", f"is {head_dim}, only hidden_size / heads = {hidden // heads} is read")
        layers = fields.integer("num_hidden_layers", 1, 4096)
        vocab = fields.integer("vocab_size", 1, 1 << 24)
        kv_heads = _kv_heads(fields, "num_key_value_heads", heads)
        bos = fields.token_ids("bos_token_id", vocab)
        return ModelConfig(
            model_type="llama",
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=fields.integer("intermediate_size", 1, 1 << 21),
            vocab_size=vocab,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 0.1),
            rope_theta=fields.number("rope_theta", 1.0, 1e12, default=10000.0),
            max_position_embeddings=fields.integer("max_position_embeddings", 1, 1 << 40),
            scale_emb=1.0,
            scale_depth=math.sqrt(layers),
            dim_model_base=hidden,
            attn_use_rope=True,
            attn_use_output_gate=False,
            lightning_use_rope=True,
            lightning_nkv=kv_heads,
            lightning_scale=1.0,
            qk_norm=False,
            use_output_gate=False,
            use_output_norm=False,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
            mixer_types=tuple[MixerType, ...](["sparse"] * layers),
            sparse=None,
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=fields.token_ids("eos_token_id", vocab),
        )


def _kv_heads(fields: Fields, name: str, heads: int) -> int:
    kv_heads = fields.integer(name, 1, heads, default=heads)
    if heads % kv_heads:
        fields.fail(name, f"is {kv_heads}, which does not divide num_attention_heads {heads}")
    return kv_heads


def _lightning_kv_heads(fields: Fields, heads: int, head_dim: int) -> int:
    # The vendor's code takes both from the general fields; a file that contradicts itself is refused.
    if fields.integer("lightning_nh", 1, 4096, default=heads) != heads:
        fields.fail("lightning_nh", f"contradicts num_attention_heads {heads}")
    if fields.integer("lightning_head_dim", 1, 4096, default=head_dim) != head_dim:
        fields.fail("lightning_head_dim", f"contradicts head_dim {head_dim}")
    return _kv_heads(fields, "lightning_nkv", heads)


def _lightning_scale(fields: Fields, head_dim: int) -> float:
    kind = fields.string("lightning_scale", _LIGHTNING_SCALES, default="1/sqrt(d)")
    return {"1/sqrt(d)": 1.0 / math.sqrt(head_dim), "1/d": 1.0 / head_dim, "1": 1.0}[kind]


def _mixers(fields: Fields, layers: int) -> tuple[MixerType, ...]:
    names = fields.strings("mixer_types")
    if len(names) != layers:
        fields.fail("mixer_types", f"lists {len(names)} layers, num_hidden_layers is {layers}")
    for name in names:
        if name not in _MIXERS:
            fields.fail("mixer_types", f"holds {shorten(name)}, known are: {', '.join(_MIXERS)}")
    return tuple(_MIXERS[name] for name in names)


def _check_unsupported(fields: Fields) -> None:
    fields.string("hidden_act", ("silu",), default="silu")
    if fields.boolean("attention_bias", default=False):
        fields.fail("attention_bias", "is true; linears with bias are not read")
    if fields.raw("rope_scaling") is not None:
        fields.fail("rope_scaling", "is set; scaled RoPE is not implemented, null is needed")


def _notes(fields: Fields, sparse_fields: Fields | None) -> tuple[str, ...]:
    notes = []
    if fields.raw("auto_map") is not None:
        notes.append("auto_map names Python code in the model folder; it is never executed")
    for name in _IGNORED:
        fields.raw(name)
    unknown = fields.unknown() + (sparse_fields.unknown() if sparse_fields else [])
    if unknown:
        notes.append(f"fields without meaning here: {', '.join(map(shorten, unknown[:20]))}")
    return tuple(notes)
