"""A network whose long chunks are multiplied in 8 bits: which of its matrices, and where that is possible.

Knows no files and no layout of codes. What decides which blocks a sparse layer reads keeps the activations' dtype, and
so do the embedding, the head and whatever is not packed.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from salalocal.model.network import Layer, Network
from salalocal.model.sparse_layer import SparseLayer
from salalocal.planner import NARROW_SLICE_TOKENS
from salalocal_quant import NarrowWeight, PackedWeight, PlanesWeight, Projections, Weight, together

NARROW_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LEAST_CAPABILITY = {"int8": (8, 0), "fp8": (8, 9)}
# The first inputs of a sparse layer: q and k.
_SELECTING = 2


def why_not(name: str, device: torch.device) -> str:
    """What `device` lacks for products in "int8" or "fp8"; "" where nothing is. Processors compute both, slowly."""
    if device.type != "cuda":
        return ""
    has, needs = torch.cuda.get_device_capability(device), _LEAST_CAPABILITY[name]
    if has >= needs:
        return ""
    return f"{name} needs a GPU of compute capability {needs[0]}.{needs[1]}, and this one has {has[0]}.{has[1]}"


def narrowed(network: Network, name: str) -> Network:
    """The same network in the same memory; many tokens multiply its packed matrices in "int8" or "fp8".

    On a processor packed matrices are rearranged into new memory.
    """
    dtype, device = NARROW_DTYPES[name], network.device

    def narrow(weight: Weight) -> Weight:
        planes = PlanesWeight.of(weight) if isinstance(weight, PackedWeight) else weight
        return NarrowWeight.narrow(planes, dtype) if isinstance(planes, PlanesWeight) else weight

    def narrow_all(projections: Projections, keep: int = 0) -> Projections:
        weights = projections.weights
        return together([*weights[:keep], *map(narrow, weights[keep:])], device)

    def narrow_layer(layer: Layer) -> Layer:
        mixer, feed = layer.mixer, layer.feed_forward
        keep = _SELECTING if isinstance(mixer, SparseLayer) else 0
        return replace(
            layer,
            mixer=replace(mixer, inputs=narrow_all(mixer.inputs, keep), o_proj=narrow(mixer.o_proj)),
            feed_forward=replace(
                feed,
                slice_tokens=feed.slice_tokens if feed.channels is None else NARROW_SLICE_TOKENS,
                gate_up=narrow_all(feed.gate_up),
                down_proj=narrow(feed.down_proj),
            ),
        )

    return replace(network, layers=tuple(map(narrow_layer, network.layers)))
