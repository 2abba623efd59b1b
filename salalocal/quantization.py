"""Which matrices of a model are packed, and how: the `quantization_config` of config.json. Knows no torch, no files.

A model names a format for every *kind* of matrix: "mlp.gate_proj", "sparse.q_proj", "lightning.q_proj",
"embed_tokens", "lm_head". Norms are never packed. Kinds rather than single tensors, because all matrices of a kind
have the same shape and do the same work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from salalocal.errors import UnsupportedFormat
from salalocal.fields import Fields, shorten

Format = Literal["int4", "int8", "bf16"]

METHOD = "salalocal"
VERSION = 1
GROUP_SIZES = (128, 64)
_FORMATS: dict[str, Format] = {"int4": "int4", "int8": "int8", "bf16": "bf16"}
_FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_SPARSE = ("sparse.q_proj", "sparse.k_proj", "sparse.v_proj", "sparse.o_proj", "sparse.o_gate")
_LIGHTNING = (
    *("lightning.q_proj", "lightning.k_proj", "lightning.v_proj"),
    *("lightning.o_proj", "lightning.z_proj"),
)
KINDS = ("embed_tokens", *_FEED_FORWARD, *_SPARSE, *_LIGHTNING, "lm_head")
# The bulk of a model. What decides which blocks are read, the gates, and what turns tokens into vectors and back stay
# finer: together a seventh of the released model.
_INT4_KINDS = {
    *_FEED_FORWARD,
    *("lightning.q_proj", "lightning.k_proj", "lightning.v_proj", "lightning.o_proj"),
    "sparse.o_proj",
}


@dataclass(frozen=True)
class Quantization:
    """How a model's matrices are stored.

    Attributes:
        group_size: elements along a row that share a scale.
        zero_point: whether int4 groups have a zero point of their own.
        formats: (kind, format) for every kind of matrix the model has.
    """

    group_size: int
    zero_point: bool
    formats: tuple[tuple[str, Format], ...]

    def format_of(self, kind: str) -> Format:
        """The format of a kind; KeyError for one the model does not have."""
        return dict(self.formats)[kind]

    def check_fits(self, columns: Mapping[str, int], fields: Fields) -> None:
        """Compares with the model's kinds.

        Args:
            columns: length of a row by kind, of every kind the model has.
            fields: where `modules` and `group_size` stand, for errors.

        Raises:
            BadConfig: a kind is missing, of no use, or its rows do not divide into groups.
        """
        named = dict(self.formats)
        for kind in columns:
            if kind not in named:
                fields.fail("modules", f"gives no format for {kind}")
        for kind, format in self.formats:
            if kind not in columns:
                fields.fail("modules", f"names {shorten(kind)}, which the model does not have")
            if format != "bf16" and columns[kind] % self.group_size:
                fields.fail("group_size", f"is {self.group_size}, but rows of {kind} have {columns[kind]} values")

    def as_json(self) -> dict[str, object]:
        """The value of `quantization_config`."""
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "group_size": self.group_size,
            "zero_point": self.zero_point,
            "modules": dict(self.formats),
        }

    @staticmethod
    def parse(fields: Fields) -> Quantization:
        """Reads `quantization_config`.

        Raises:
            UnsupportedFormat: another method's weights, or another version of these.
            BadConfig: naming the field that is missing, unknown or out of range.
        """
        method = fields.raw("quant_method")
        if method != METHOD:
            raise UnsupportedFormat(
                f"{fields.where}: field quantization_config.quant_method is {shorten(method)}; "
                "such weights are not read, use the bf16 checkpoint"
            )
        version = fields.integer("version", 0, 1 << 31)
        if version != VERSION:
            raise UnsupportedFormat(
                f"{fields.where}: packed weights of version {version}; this salalocal reads version {VERSION}: "
                "update it, or quantize the model again"
            )
        group_size = fields.integer("group_size", 1, 1 << 16)
        if group_size not in GROUP_SIZES:
            fields.fail("group_size", f"is {group_size}; 64 and 128 are possible")
        modules = fields.section("modules")
        if modules is None:
            fields.fail("modules", "is missing")
        formats: list[tuple[str, Format]] = []
        for kind in KINDS:
            if modules.raw(kind) is not None:
                formats.append((kind, _FORMATS[modules.string(kind, tuple(_FORMATS))]))
        quantization = Quantization(group_size, fields.boolean("zero_point", default=False), tuple(formats))
        unknown = [*modules.unknown(), *fields.unknown()]
        if unknown:
            # A field that is not understood may change what the codes mean.
            raise UnsupportedFormat(f"{fields.where}: field {shorten(unknown[0])} is not known to version {VERSION}")
        return quantization


def recipe(
    format: Literal["int4", "int8"], columns: Mapping[str, int], group_size: int, zero_point: bool
) -> Quantization:
    """The default way to store a model; kinds whose rows do not divide into groups stay bf16.

    Args:
        format: "int8" packs every matrix in int8; "int4" the bulk in int4 and the rest in int8.
        columns: length of a row by kind, of every kind the model has.
        group_size: 64 or 128.
        zero_point: for int4.
    """

    def choose(kind: str) -> Format:
        if columns[kind] % group_size:
            return "bf16"
        return "int4" if format == "int4" and kind in _INT4_KINDS else "int8"

    return Quantization(group_size, zero_point, tuple((kind, choose(kind)) for kind in columns))


def best_group_size(columns: Iterable[int]) -> int:
    """128, or 64 where that lets more matrices be packed; `columns` are the lengths of their rows."""
    lengths = list(columns)
    return max(GROUP_SIZES, key=lambda size: (sum(length % size == 0 for length in lengths), size))
