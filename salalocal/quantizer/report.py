"""What a run tells while it works and when it is done. Knows sums of squares, no tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from salalocal.config import ModelConfig
from salalocal.quantization import Format, Quantization
from salalocal.quantizer.manifest import KindError, ShardRecord


@dataclass(frozen=True)
class QuantizeProgress:
    """How far a run is; `module` is the weight that is done, parameters are numbers in the original."""

    module: str
    done_parameters: int
    total_parameters: int


@dataclass(frozen=True)
class KindReport:
    """What became of all matrices of a kind.

    Attributes:
        kind: as in `quantization.py`.
        format: they are stored in.
        matrices: how many.
        relative_error: rms of the difference by rms of the original; None where they stay bf16.
        reason: why they stay bf16, else "".
    """

    kind: str
    format: Format
    matrices: int
    relative_error: float | None
    reason: str


@dataclass(frozen=True)
class QuantizeReport:
    """A finished run: the folder, how it is packed, bytes of all weights before and after, and every kind's error."""

    path: Path
    quantization: Quantization
    source_bytes: int
    packed_bytes: int
    kinds: tuple[KindReport, ...]


def report_kinds(
    config: ModelConfig, quantization: Quantization, shards: Iterable[ShardRecord]
) -> tuple[KindReport, ...]:
    """Adds up what the shards of a model recorded, kind by kind."""
    records = list(shards)
    reports = []
    for kind, format in quantization.formats:
        total = sum((shard.errors[kind] for shard in records if kind in shard.errors), KindError(0, 0.0, 0.0))
        is_packed = format != "bf16"
        error = math.sqrt(total.squared_error / total.squared_norm) if is_packed and total.squared_norm else None
        columns = config.matrix_columns[kind]
        reason = "" if is_packed else f"rows of {columns} values do not divide into groups of {quantization.group_size}"
        reports.append(KindReport(kind, format, total.matrices, error, reason))
    return tuple(reports)
