"""Every kernel's time beside what the same card can do at most. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from salalocal.bench.clock import Ceilings, measure_ceilings, milliseconds
from salalocal.errors import InvalidRequest

if TYPE_CHECKING:
    from salalocal_kernels.gpu.bench.cases import Case

_FROM_HOST = "gather_rows"


@dataclass(frozen=True)
class Row:
    """One kernel at one shape.

    Attributes:
        kernel, shape, selection: what was timed.
        milliseconds: of one call.
        bytes_per_second: bytes that it cannot do without, by its time.
        flop_per_second: useful operations by its time; 0 where there are none to speak of.
        floor_ms: what bytes at the copy's rate or operations at the product's rate take, whichever is more.
        bound: "bytes", "bus", or the unit of the operations.
        peer, peer_ms: another implementation of the op and its time; None where there is none here.
    """

    kernel: str
    shape: str
    selection: str
    milliseconds: float
    bytes_per_second: float
    flop_per_second: float
    floor_ms: float
    bound: str
    peer: str | None
    peer_ms: float | None

    @property
    def of_ceiling(self) -> float:
        """The floor's share of the time; 1 is as fast as the card allows."""
        return self.floor_ms / self.milliseconds


def time_kernels(on_ceilings: Callable[[Ceilings], None], on_row: Callable[[Row], None]) -> tuple[Ceilings, list[Row]]:
    """Times every case of `salalocal_kernels.gpu.bench` on the current GPU.

    Args:
        on_ceilings: told what the card can do, before the first row.
        on_row: told each row as it is done.

    Raises:
        InvalidRequest: there is no NVIDIA GPU.
    """
    if not torch.cuda.is_available():
        raise InvalidRequest("bench kernels times kernels on an NVIDIA GPU, and PyTorch finds none here")
    from salalocal_kernels.gpu.bench import lightning, packed, sparse

    ceilings = measure_ceilings()
    on_ceilings(ceilings)
    rows: list[Row] = []
    for module in (lightning, sparse, packed):
        for case in module.cases():
            rows.append(measured(case, ceilings))
            on_row(rows[-1])
        torch.cuda.empty_cache()
    return ceilings, rows


def measured(case: Case, ceilings: Ceilings) -> Row:
    """The row of one case, timed now."""
    taken = milliseconds(case.call, case.turns)
    on_bus = case.kernel == _FROM_HOST
    rate = ceilings.host_bytes_per_second if on_bus else ceilings.copy_bytes_per_second
    by_bytes, by_flop = case.bytes_moved / rate * 1e3, case.flop / ceilings.flop_per_second[case.unit] * 1e3
    bound = case.unit if by_flop > by_bytes else "bus" if on_bus else "bytes"
    name, call = case.peer or (None, None)
    return Row(
        case.kernel, case.shape, case.selection, taken,
        case.bytes_moved / taken * 1e3, case.flop / taken * 1e3, max(by_bytes, by_flop), bound,
        name, milliseconds(call, case.turns) if call is not None else None,
    )  # fmt: skip
