"""Every kernel's time beside what the same card can do at most. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from salalocal.bench.clock import Ceilings, measure_ceilings, milliseconds
from salalocal.errors import InvalidRequest

if TYPE_CHECKING:
    from salalocal_kernels.gpu.bench.cases import Case, Peer

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
        peer_error: why the peer has no time, in its own words.
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
    peer_error: str | None = None

    @property
    def of_ceiling(self) -> float:
        """The floor's share of the time; 1 is as fast as the card allows."""
        return self.floor_ms / self.milliseconds


def time_kernels(
    on_ceilings: Callable[[Ceilings, list[str]], None], on_row: Callable[[Row], None], only: str = ""
) -> tuple[Ceilings, list[Row]]:
    """Times every case of `salalocal_kernels.gpu.bench` on the current GPU.

    Args:
        on_ceilings: told what the card can do and which packages with peers are missing, before the first row.
        on_row: told each row as it is done.
        only: what "kernel shape" has to begin with.

    Raises:
        InvalidRequest: there is no NVIDIA GPU, or no such case.
    """
    if not torch.cuda.is_available():
        raise InvalidRequest("bench kernels times kernels on an NVIDIA GPU, and PyTorch finds none here")
    from salalocal_kernels.gpu.bench import lightning, packed, peers, sparse

    ceilings = measure_ceilings()
    on_ceilings(ceilings, peers.missing())
    rows: list[Row] = []
    names: dict[str, None] = {}
    for module in (lightning, sparse, packed):
        for case in module.cases():
            names[case.kernel] = None
            if f"{case.kernel} {case.shape}".startswith(only):
                rows.append(measured(case, ceilings))
                on_row(rows[-1])
        torch.cuda.empty_cache()
    if not rows:
        raise InvalidRequest(f"no row begins with {only!r}; there are {', '.join(names)}")
    return ceilings, rows


def measured(case: Case, ceilings: Ceilings) -> Row:
    """The row of one case, timed now."""
    taken = milliseconds(case.call, case.turns)
    on_bus = case.kernel == _FROM_HOST
    rate = ceilings.host_bytes_per_second if on_bus else ceilings.copy_bytes_per_second
    by_bytes, by_flop = case.bytes_moved / rate * 1e3, case.flop / ceilings.flop_per_second[case.unit] * 1e3
    bound = case.unit if by_flop > by_bytes else "bus" if on_bus else "bytes"
    peer_ms, peer_error = (None, None) if case.peer is None else _timed(case.peer, case.turns)
    return Row(
        case.kernel, case.shape, case.selection, taken,
        case.bytes_moved / taken * 1e3, case.flop / taken * 1e3, max(by_bytes, by_flop), bound,
        None if case.peer is None else case.peer.name, peer_ms, peer_error,
    )  # fmt: skip


def _timed(peer: Peer, turns: int) -> tuple[float | None, str | None]:
    """Its time, or why it has none: what others have made must not end the table."""
    try:
        return milliseconds(peer.prepare(), turns), None
    except Exception as error:  # noqa: BLE001 - any package has errors of its own
        return None, f"{type(error).__name__}: {error}".strip().splitlines()[0]
