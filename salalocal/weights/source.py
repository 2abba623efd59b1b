"""What a set of weight files offers, whatever their format. Knows no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        file: name of the file, for errors.
        shape: in PyTorch's order.
        dtype: the format's own word, for example "BF16" or "Q4_K".
        is_float: whether the values are floating-point numbers once read.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str
    is_float: bool


class WeightSource(Protocol):
    """Tensors by name; headers are read and checked when the source is opened, values only by `read`."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor there is."""

    @property
    def files(self) -> Sequence[Path]:
        """All files that make up the model, in an order that does not depend on where they lie."""

    def read(self, name: str) -> Tensor:
        """One tensor's values on the CPU, in a floating dtype; tensors of packed matrices as they are stored.

        Raises:
            BadCheckpoint: the values cannot be read.
        """
