"""What there is to time of a kernel: a call, the bytes and operations it cannot do without, and a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Unit = Literal["bf16", "fp8", "int8"]
Selection = Literal["", "replayed", "all-new"]


@dataclass(frozen=True)
class Peer:
    """Another implementation of an op.

    Attributes:
        name: whose, and what it is called there.
        prepare: gives the call; whatever goes wrong in there or in the call is the peer's.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kernel: its name.
        shape: what it is given, in words.
        call: runs it once on the current GPU.
        bytes_moved: every input read once and every output written once.
        flop: useful floating-point (or integer) operations; 0 where bytes are all there is.
        unit: whose rate bounds them.
        selection: how the blocks that it reads were chosen.
        turns: calls that make a round through distinct data of more than the caches; they are timed in one CUDA graph.
            1 where one call is long enough to time and too large for the caches.
        peer: another implementation of the same op.
    """

    kernel: str
    shape: str
    call: Callable[[], object]
    bytes_moved: int
    flop: int = 0
    unit: Unit = "bf16"
    selection: Selection = ""
    turns: int = 1
    peer: Peer | None = None
