"""Packed weights on a GPU: codes in planes, as its kernels read them. Knows one matrix, not files or layers.

One token multiplies the packed matrix directly. Many take a slice of rows at a time, unpacked into a scratch buffer
that all matrices share, and a plain product with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salalocal_kernels import Planes, linear, packed_linear, plane_values, to_planes
from salalocal_quant.packed import SCRATCH_BYTES, PackedWeight

# Multiplying packed codes reads them once for every token; unpacking costs the bytes of 5 (8 bits) to 9 (4 bits) such
# reads and a launch more.
FEW_TOKENS = 4

_scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}


@dataclass(frozen=True)
class PlanesWeight:
    """A matrix [N, K] of packed codes in planes.

    Attributes:
        planes: the codes.
    """

    planes: Planes

    @staticmethod
    def of(packed: PackedWeight, device: torch.device | None = None) -> PlanesWeight:
        """Rearranges a matrix from the layout on disk, on `device` or else where it is."""
        return PlanesWeight(to_planes(packed.qweight, packed.scales, packed.zeros, packed.group_size, device))

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.planes.shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory, the same as on disk."""
        return self.planes.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., K] -> x W^T [..., N], dtype of x."""
        if is_few(x):
            return packed_linear(x, (self.planes,))[0]
        parts = [linear(x, _unpacked(part, x.dtype)) for _, part in self.slices(x.dtype)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def slices(self, dtype: torch.dtype) -> Iterator[tuple[slice, Planes]]:
        """Runs of rows whose values in `dtype` fit into the scratch buffer."""
        rows, columns = self.shape
        step = max(1, SCRATCH_BYTES[self.planes.device.type] // (columns * dtype.itemsize))
        for start in range(0, rows, step):
            taken = slice(start, start + step)
            yield taken, _rows(self.planes, taken)

    def part(self, taken: slice) -> PlanesWeight:
        """Some of the rows, in the same memory."""
        return PlanesWeight(_rows(self.planes, taken))


def is_few(x: Tensor) -> bool:
    """Whether x [..., K] has so few rows that packed codes are multiplied as they are."""
    return x.numel() <= FEW_TOKENS * x.shape[-1]


def _rows(planes: Planes, taken: slice) -> Planes:
    zeros = None if planes.zeros is None else planes.zeros[taken]
    return replace(planes, words=planes.words[taken], scales=planes.scales[taken], zeros=zeros)


def _unpacked(planes: Planes, dtype: torch.dtype) -> Tensor:
    """Values [N, K] in the scratch buffer."""
    return plane_values(planes, dtype, scratch(planes, dtype))


def scratch(planes: Planes, dtype: torch.dtype) -> Tensor:
    """Room [N, K] in the scratch buffer, which the next call hands out again."""
    rows, columns = planes.shape
    key = (planes.device, dtype)
    if key not in _scratch or _scratch[key].numel() < rows * columns:
        _scratch.pop(key, None)
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            _scratch[key] = torch.empty(rows * columns, dtype=dtype, device=planes.device)
    return _scratch[key][: rows * columns].view(rows, columns)
