"""Rows of `bench long`, and the file that gathers them over several runs. Knows no clock and no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from salalocal.atomic import replacing
from salalocal.errors import BadConfig, InvalidRequest
from salalocal.fields import read_json_object

VERSION = 1
OUT_OF_MEMORY = "out of memory"
_PLANNED = ("planned_seconds", "planned_tokens_per_second")

Model = Literal["salalocal", "dense peer"]
Key = tuple[object, ...]


@dataclass(frozen=True)
class Traffic:
    """What went between main memory and the card.

    Attributes:
        hits, misses: blocks that were on the card when they were read, and that were not.
        nbytes: over the bus.
    """

    hits: int
    misses: int
    nbytes: int

    def since(self, before: Traffic) -> Traffic:
        """Of that, what came after `before`."""
        return Traffic(self.hits - before.hits, self.misses - before.misses, self.nbytes - before.nbytes)

    @property
    def hit_rate(self) -> float | None:
        """0 to 1; None where nothing was read."""
        read = self.hits + self.misses
        return self.hits / read if read else None


@dataclass(frozen=True)
class LongRow:
    """One text of one length, read and answered.

    Attributes:
        model: who read it.
        tokens: of the prompt.
        selection: "own", "replayed", "all-new" (docs/performance.md); "everything" for the dense peer.
        prefill: how packed matrices are multiplied, as the engine's `prefill`; of the peer the attention's backend.
        gpu_memory: the cap in bytes; None without one.
        chunk_tokens: read at once; 0 is the whole prompt.
        staged: noted on the way to a longer text: no memory is told.
        device: the card.
        run: which run of the command it is from.
        ttft_seconds: from the prompt's ids to the first token on the host; None where it did not come to that.
        decode_ms: median of a step by the wall clock; None where none was taken.
        steps: so many.
        peak_device_bytes: the most that the process held on the card, CUDA's own part included.
        peak_device_by: whose figure that is, as `gpu_memory.Held.by`.
        peak_host_bytes: the most of main memory that was resident.
        weight_bytes: of the model.
        pin_seconds: of `ttft_seconds`, spent on pinning main memory.
        prefill_traffic, decode_traffic: None where all K/V is on the card.
        attention_ms: of the peer, one layer's attention by backend; a backend that failed is not there.
        note: why there is no time.
        planned_seconds, planned_tokens_per_second: what the plan for this setting says, from rates that `bench machine`
            measured on the same card; None where it was not run, or where a format or the bus is not among them.
        kv: how K/V is kept in main memory, as the engine's.
        is_pinned: page-locked there, where the card reads it by itself.
    """

    model: Model
    tokens: int
    selection: str
    prefill: str
    gpu_memory: int | None
    chunk_tokens: int
    staged: bool
    device: str
    run: str
    ttft_seconds: float | None = None
    decode_ms: float | None = None
    steps: int = 0
    peak_device_bytes: int | None = None
    peak_device_by: str | None = None
    peak_host_bytes: int | None = None
    weight_bytes: int = 0
    pin_seconds: float | None = None
    prefill_traffic: Traffic | None = None
    decode_traffic: Traffic | None = None
    attention_ms: dict[str, float] = field(default_factory=dict)
    note: str = ""
    planned_seconds: float | None = None
    planned_tokens_per_second: float | None = None
    kv: str = "full"
    is_pinned: bool = True

    @property
    def setting(self) -> Key:
        """All that rows of one curve have in common."""
        prefill = self.prefill if self.model == "salalocal" else ""
        kept = self.kv, self.is_pinned
        return self.model, self.selection, prefill, self.gpu_memory, self.chunk_tokens, self.device, *kept

    @property
    def tokens_per_second(self) -> float | None:
        """Of the answer."""
        return None if self.decode_ms is None else 1e3 / self.decode_ms

    @property
    def plan_ratio(self) -> float | None:
        """Planned seconds to the first token, by what was measured."""
        return _ratio(self.planned_seconds, self.ttft_seconds)

    @property
    def plan_decode_ratio(self) -> float | None:
        """Planned tokens/s, by what was measured."""
        return _ratio(self.planned_tokens_per_second, self.tokens_per_second)


class LongTable:
    """Rows of all runs that went into one file.

    Args:
        path: of the file, which is written anew with every row; None keeps them here only.

    Attributes:
        rows: in the order in which they were measured.
        runs: what each run was on.

    Raises:
        InvalidRequest: there is a file, and it is none of this command's.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: list[LongRow] = []
        self.runs: dict[str, Mapping[str, object]] = {}
        if path is not None and path.exists():
            try:
                self._take(read_json_object(path))
            except (BadConfig, TypeError, KeyError, AttributeError) as error:
                raise InvalidRequest(
                    f"{path}: not a file of this version's 'salalocal bench long' ({error}); name another --out"
                ) from error

    def _take(self, data: dict[str, object]) -> None:
        rows, runs = data["rows"], data["runs"]
        if data["version"] != VERSION or not isinstance(rows, list) or not isinstance(runs, dict):
            raise TypeError(f"version {data['version']!r}")
        self.rows = [_row(item) for item in rows]
        self.runs = dict(runs)

    def find(self, setting: Key, tokens: int, *, staged: bool) -> LongRow | None:
        """The row of a setting and length; with `staged`, one noted on the way serves too."""
        rows = (row for row in self.rows if row.setting == setting and row.tokens == tokens)
        return next((row for row in rows if staged or not row.staged), None)

    def add(self, row: LongRow) -> None:
        """Takes a row, and writes the file.

        Raises:
            InvalidRequest: it cannot be written.
        """
        self.rows.append(row)
        if self._path is None:
            return
        try:
            with replacing(self._path) as file:
                file.write(json.dumps(self.as_data(), indent=1, allow_nan=False).encode())
        except OSError as error:
            raise InvalidRequest(f"{self._path}: cannot be written ({error.strerror or error})") from error

    def as_data(self) -> dict[str, object]:
        """What the file holds."""
        return {"version": VERSION, "runs": self.runs, "rows": [asdict(row) for row in self.rows]}

    def ratio(self, row: LongRow) -> float | None:
        """How many times as long the dense peer took in the same run; None where it has no time there."""
        if row.ttft_seconds is None or row.model != "salalocal":
            return None
        peers = (other for other in self.rows if other.model == "dense peer" and other.tokens == row.tokens)
        same = (other for other in peers if (other.run, other.device) == (row.run, row.device))
        return next((other.ttft_seconds / row.ttft_seconds for other in same if other.ttft_seconds), None)


def _ratio(planned: float | None, measured: float | None) -> float | None:
    return None if planned is None or measured is None else planned / measured


def _row(data: dict[str, object]) -> LongRow:
    known = {item.name for item in fields(LongRow)}
    # Rows from before there were plans beside them, or memory that is not page-locked.
    data = dict.fromkeys(_PLANNED) | {"is_pinned": True} | data
    if set(data) != known:
        raise TypeError(f"fields {', '.join(sorted(set(data) ^ known))}")
    traffic = {name: data[name] and Traffic(**data[name]) for name in ("prefill_traffic", "decode_traffic")}  # type: ignore[arg-type]
    return LongRow(**{**data, **traffic})  # type: ignore[arg-type]
