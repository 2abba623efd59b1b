"""From a source of tensors to a network: what must be there, checked before anything is allocated, then read."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.errors import BadCheckpoint
from salalocal.fields import shorten
from salalocal.model.feed_forward import FeedForward
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.network import Layer, Network
from salalocal.model.sparse_layer import SparseLayer
from salalocal.weights.layout import expected_tensors
from salalocal.weights.source import WeightSource
from salalocal_kernels import lightning_slopes
from salalocal_quant import (
    DenseWeight,
    Embedding,
    Int4Weight,
    Int8Weight,
    PackedError,
    PackedWeight,
    PlanesWeight,
    Projections,
    Weight,
    together,
)


def check_tensors(config: ModelConfig, source: WeightSource) -> None:
    """Compares headers with what `config` needs.

    Raises:
        BadCheckpoint: naming the first tensor that is missing, extra, wrong-shaped or of another type.
    """
    expected = expected_tensors(config)
    for name, spec in expected.items():
        info = source.tensors.get(name)
        if info is None:
            packed = source.tensors.get(name.removesuffix("weight") + "qweight")
            if packed is not None:
                raise BadCheckpoint(
                    f"{packed.file}: {name!r} is packed, but config.json has no quantization_config that says so"
                )
            raise BadCheckpoint(f"tensor {name!r} is missing ({len(source.tensors)} of {len(expected)} are there)")
        if info.shape != spec.shape:
            raise BadCheckpoint(
                f"{info.file}: tensor {name!r} has shape {list(info.shape)}, config.json makes it {list(spec.shape)}"
            )
        if not info.is_float if spec.dtype is None else info.dtype != spec.dtype:
            raise BadCheckpoint(
                f"{info.file}: tensor {name!r} is {info.dtype}, {spec.dtype or 'a floating type'} is needed"
            )
    extra = sorted(set(source.tensors) - set(expected))
    if extra:
        named = shorten(extra[0]) + (f" and {len(extra) - 1} more" if len(extra) > 1 else "")
        raise BadCheckpoint(f"{source.tensors[extra[0]].file}: tensor {named} has no place in the model")


def build_network(
    config: ModelConfig,
    source: WeightSource,
    dtype: torch.dtype,
    device: torch.device,
    *,
    unpack: bool = False,
    feed_channels: int | None = None,
    has_host_table: bool = False,
) -> Network:
    """Reads every weight of `source`, one at a time, and puts the network together.

    Args:
        config: the model.
        source: its tensors.
        dtype: of activations and of weights that are not packed.
        device: where both go.
        unpack: turn packed matrices into plain ones of `dtype`.
        feed_channels: of gate and up that a feed-forward has at once; None for all.
        has_host_table: the embedding table stays in host memory, page-locked, and a GPU reads rows of it from there.

    Raises:
        BadCheckpoint: headers do not fit the config, or a tensor holds NaN or Inf; nothing stays allocated.
    """
    check_tensors(config, source)
    try:
        return _read_network(config, _Reader(source, dtype, device, unpack), feed_channels, has_host_table)
    except BadCheckpoint as error:
        # Whoever keeps the error keeps its frames, and with them every tensor read so far.
        message = str(error)
    raise BadCheckpoint(message)


def _read_network(config: ModelConfig, reader: _Reader, feed_channels: int | None, has_host_table: bool) -> Network:
    """The largest first: what they are drawn or merged from leaves gaps in a GPU's memory, which smaller ones fill."""
    embedding = (reader.host_table if has_host_table else reader.embedding)("model.embed_tokens")
    head = embedding if config.tie_word_embeddings else reader.weight("lm_head")
    layers = range(config.num_hidden_layers)
    feeds = [_feed_forward(f"model.layers.{index}.mlp", reader, feed_channels) for index in layers]
    return Network(
        config=config,
        dtype=reader.dtype,
        device=reader.device,
        embedding=embedding,
        layers=tuple(_layer(config, index, reader, feeds[index]) for index in layers),
        final_norm=reader.tensor("model.norm"),
        head=head,
    )


class _Reader:
    """Reads weights by their module's name, checked and converted; headers must have been checked."""

    def __init__(self, source: WeightSource, dtype: torch.dtype, device: torch.device, unpack: bool) -> None:
        self._source, self.dtype, self.device, self._unpack = source, dtype, device, unpack

    def tensor(self, module: str) -> Tensor:
        name = module + ".weight"
        values = self._source.read(name).to(device=self.device, dtype=self.dtype)
        # After the conversion, which may overflow. One pass that carries NaN along; isfinite would make a copy.
        if not torch.stack(torch.aminmax(values)).isfinite().all():
            file = self._source.tensors[name].file
            raise BadCheckpoint(
                f"{file}: tensor {name!r} holds NaN, Inf or a number too large for {self.dtype}; "
                "download the file again"
            )
        return values

    def weight(self, module: str) -> Weight:
        """For products: on a GPU packed codes lie as its kernels read them."""
        if f"{module}.qweight" in self._source.tensors and self.device.type == "cuda" and not self._unpack:
            return PlanesWeight.of(self._packed(module), self.device)
        return self.embedding(module)

    def embedding(self, module: str) -> Embedding:
        """For rows: codes as they lie on disk."""
        if f"{module}.qweight" not in self._source.tensors:
            return DenseWeight(self.tensor(module))
        packed = self._packed(module).to(self.device)
        return packed.unpack() if self._unpack else packed

    def host_table(self, module: str) -> Embedding:
        """As `embedding`, in page-locked host memory."""
        return _Reader(self._source, self.dtype, torch.device("cpu"), self._unpack).embedding(module).pinned()

    def projections(self, at: str, *names: str) -> Projections:
        """Weights that multiply the same input."""
        return together([self.weight(f"{at}.{name}") for name in names], self.device)

    def _packed(self, module: str) -> PackedWeight:
        info = self._source.tensors[f"{module}.qweight"]
        names = {suffix: f"{module}.{suffix}" for suffix in ("qweight", "scales", "zeros")}
        stored = {suffix: self._source.read(name) for suffix, name in names.items() if name in self._source.tensors}
        make = Int4Weight if info.dtype == "I32" else Int8Weight
        try:
            weight = make(stored["qweight"], stored["scales"], stored.get("zeros"), self.dtype)
            weight.check_values()
        except PackedError as error:
            raise BadCheckpoint(
                f"{info.file}: packed weights of {module!r}: {error}; download the file again"
            ) from error
        return weight


def _layer(config: ModelConfig, index: int, reader: _Reader, feed_forward: FeedForward) -> Layer:
    at = f"model.layers.{index}"
    make = _sparse_layer if config.mixer_types[index] == "sparse" else _lightning_layer
    return Layer(
        input_norm=reader.tensor(f"{at}.input_layernorm"),
        mixer=make(config, f"{at}.self_attn", reader),
        post_norm=reader.tensor(f"{at}.post_attention_layernorm"),
        feed_forward=feed_forward,
    )


def _feed_forward(at: str, reader: _Reader, channels: int | None) -> FeedForward:
    return FeedForward(
        gate_up=reader.projections(at, "gate_proj", "up_proj"),
        down_proj=reader.weight(f"{at}.down_proj"),
        channels=channels,
    )


def _sparse_layer(config: ModelConfig, at: str, reader: _Reader) -> SparseLayer:
    return SparseLayer(
        config=config,
        inputs=reader.projections(
            at, "q_proj", "k_proj", "v_proj", *(("o_gate",) if config.attn_use_output_gate else ())
        ),
        o_proj=reader.weight(f"{at}.o_proj"),
    )


def _lightning_layer(config: ModelConfig, at: str, reader: _Reader) -> LightningLayer:
    wide = torch.promote_types(reader.dtype, torch.float32)
    return LightningLayer(
        config=config,
        inputs=reader.projections(at, "q_proj", "k_proj", "v_proj", *(("z_proj",) if config.use_output_gate else ())),
        o_proj=reader.weight(f"{at}.o_proj"),
        q_norm=reader.tensor(f"{at}.q_norm") if config.qk_norm else None,
        k_norm=reader.tensor(f"{at}.k_norm") if config.qk_norm else None,
        o_norm=reader.tensor(f"{at}.o_norm") if config.use_output_norm else None,
        slopes=torch.tensor(lightning_slopes(config.num_attention_heads), dtype=wide, device=reader.device),
    )
