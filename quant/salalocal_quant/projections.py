"""Weights that multiply the same input, together where that saves launches. Knows matrices, not layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_kernels import Planes, linear, packed_linear, packed_silu_mul, silu_mul, silu_mul_codes
from salalocal_quant.dense import DenseWeight, Weight
from salalocal_quant.narrow_weight import NarrowWeight, is_many
from salalocal_quant.planes_weight import PlanesWeight, is_few

# What `packed_linear` takes in one launch.
_MOST_TOGETHER = 4
# In which the last product of a feed-forward is made where memory is short.
_PARTS = 4


@dataclass(frozen=True)
class Projections:
    """Several matrices [N, K] of one input, one product each.

    Attributes:
        weights: in the order of the results.
    """

    weights: tuple[Weight, ...]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] -> x W^T [..., N] for every weight, dtype of x."""
        narrow = next((weight for weight in self.weights if isinstance(weight, NarrowWeight)), None)
        if narrow is None or not is_many(x):
            return tuple(weight(x) for weight in self.weights)
        # Rounded once for all of them.
        rounded = narrow.round(x)
        return tuple(
            weight.times(rounded, x.dtype) if isinstance(weight, NarrowWeight) else weight(x) for weight in self.weights
        )

    def silu_mul(self, x: Tensor) -> Tensor:
        """silu(x W_0^T) * (x W_1^T), x [T, K] -> [T, N], for two weights of one shape."""
        gate, up = self(x)
        return silu_mul(gate, up)

    def feed(self, x: Tensor, down: Weight, channels: int | None = None) -> Tensor:
        """What `silu_mul` gives of x [T, K], times `down`: [T, M].

        Args:
            x: [T, K].
            down: [M, N].
            channels: of N that both products are there with at once, and no matrix is unpacked as a whole; None for
                all, and all where `down` takes 8 bits: a token's channels share a scale.
        """
        if isinstance(down, NarrowWeight) and is_many(x):
            gate, up = self(x)
            codes = silu_mul_codes(gate, up, down.dtype)
            # The largest tensors of a chunk.
            del gate, up
            return down.times(codes, x.dtype)
        if channels is None or is_few(x):
            return down(self.silu_mul(x))
        return _in_parts(self._by_channels(x, channels), down)

    def _by_channels(self, x: Tensor, channels: int) -> Tensor:
        """As `silu_mul`; every matrix is unpacked once."""
        gate, up = self.weights
        rows = gate.shape[0]
        out = x.new_empty(len(x), rows)
        for start in range(0, rows, channels):
            taken = slice(start, start + channels)
            silu_mul(gate.part(taken)(x), up.part(taken)(x), out[:, taken])
        return out


@dataclass(frozen=True)
class MergedDense(Projections):
    """Plain matrices that lie below each other in one; the results are views of one product.

    Attributes:
        data: [sum of N, K], of which `weights` are slices.
    """

    data: Tensor

    @staticmethod
    def of(weights: Sequence[DenseWeight]) -> MergedDense:
        """Copies the matrices together."""
        data = torch.cat([weight.data for weight in weights])
        slices = torch.split(data, [weight.data.shape[0] for weight in weights])
        return MergedDense(tuple(map(DenseWeight, slices)), data)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] -> x W^T [..., N] for every weight; channels are adjacent, rows are not."""
        counts = [weight.data.shape[0] for weight in self.weights if isinstance(weight, DenseWeight)]
        return torch.split(linear(x, self.data), counts, dim=-1)


@dataclass(frozen=True)
class MergedPlanes(Projections):
    """Packed matrices that a few tokens multiply in one launch; formats may differ."""

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., K] -> x W^T [..., N] for every weight; channels are adjacent, rows may not be."""
        return packed_linear(x, self._planes()) if is_few(x) else super().__call__(x)

    def silu_mul(self, x: Tensor) -> Tensor:
        """As in `Projections`."""
        if not is_few(x):
            return super().silu_mul(x)
        gate, up = self._planes()
        return packed_silu_mul(x, gate, up)

    def _planes(self) -> list[Planes]:
        return [weight.planes for weight in self.weights if isinstance(weight, PlanesWeight)]


def _in_parts(x: Tensor, weight: Weight) -> Tensor:
    """x [T, K] -> x W^T [T, N], some of the rows N at a time."""
    rows = weight.shape[0]
    out, step = x.new_empty(len(x), rows), -(-rows // _PARTS)
    for start in range(0, rows, step):
        taken = slice(start, start + step)
        out[:, taken] = weight.part(taken)(x)
    return out


def together(weights: Sequence[Weight], device: torch.device) -> Projections:
    """Weights of one input as `device` multiplies them fastest; all of them are there.

    Plain matrices are copied into one for a GPU. A processor gains nothing from that.
    """
    dense = [weight for weight in weights if isinstance(weight, DenseWeight)]
    planes = [weight for weight in weights if isinstance(weight, PlanesWeight)]
    if device.type == "cuda" and len(dense) == len(weights):
        return MergedDense.of(dense)
    if len(planes) == len(weights) and _are_alike(planes):
        return MergedPlanes(tuple(planes))
    return Projections(tuple(weights))


def _are_alike(weights: Sequence[PlanesWeight]) -> bool:
    """Whether one launch takes them: one group size, and zero points in all matrices of 4 bits or in none."""
    groups = {weight.planes.group_size for weight in weights}
    zeros = {weight.planes.zeros is not None for weight in weights if weight.planes.bits == 4}
    return len(weights) <= _MOST_TOGETHER and len(groups) == 1 and len(zeros) <= 1
