"""What was measured of this machine, kept in a file per device. Knows no torch and no clock.

The file is a cache: one of another version, another device or another shape counts as not there.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from salalocal.atomic import replacing
from salalocal.bus_times import Bus
from salalocal.errors import BadConfig, InvalidRequest
from salalocal.fields import Fields, read_json_object
from salalocal.hub import home
from salalocal.times import Rates

VERSION = 3
_MOST = 1e30


@dataclass(frozen=True)
class Hardware:
    """Rates of the bare machine; None where there is no GPU.

    Attributes:
        matmul_flop_per_second: of a large product in the dtype that models run in.
        copy_bytes_per_second: within the device's memory, bytes read plus bytes written.
        read_bytes_per_second: of a product of one row, which reads its matrix once.
        pinned_bytes_per_second, pageable_bytes_per_second: host memory to GPU.
        written_bytes_per_second: GPU to pinned host memory.
        gather_bytes_per_second: of single blocks of 32 KiB that a kernel reads from there.
        int8_flop_per_second, fp8_flop_per_second: of a large product; None also where the GPU has no such units.
    """

    matmul_flop_per_second: float
    copy_bytes_per_second: float
    read_bytes_per_second: float
    pinned_bytes_per_second: float | None
    pageable_bytes_per_second: float | None
    written_bytes_per_second: float | None = None
    gather_bytes_per_second: float | None = None
    int8_flop_per_second: float | None = None
    fp8_flop_per_second: float | None = None


@dataclass(frozen=True)
class Reading:
    """How fast the embedded model reads and answers after `position` tokens."""

    position: int
    prefill_tokens_per_second: float
    decode_steps_per_second: float | None


@dataclass(frozen=True)
class Machine:
    """One device's measurements.

    Attributes:
        device: "cpu" or "cuda".
        device_name: of the processor or card.
        dtype: that models run in on it.
        measured_at: UTC, to the second.
        others_share: of all processor time, taken by other programs meanwhile, 0 to 1.
        hardware: the bare machine.
        model: that the engine's figures are of.
        readings: by position.
        rates: derived from them, for predictions.
    """

    device: str
    device_name: str
    dtype: str
    measured_at: str
    others_share: float
    hardware: Hardware
    model: str
    readings: tuple[Reading, ...]
    rates: Rates

    def as_json(self) -> dict[str, object]:
        """What the file holds."""
        return {"version": VERSION, **asdict(self)}


def record_path(device: str) -> Path:
    """Where the measurements of "cpu" or "cuda" are kept. May not exist."""
    return home() / f"machine-{device}.json"


def save(machine: Machine) -> Path:
    """Keeps the measurements, in the place of earlier ones.

    Raises:
        InvalidRequest: the folder cannot be written.
    """
    path = record_path(machine.device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(machine.as_json(), indent=2, allow_nan=False).encode())
    except OSError as error:
        raise InvalidRequest(
            f"{path}: cannot be written ({error.strerror or error}); SALALOCAL_HOME names another place"
        ) from error
    return path


def recall(device: str, device_name: str) -> Machine | None:
    """What was measured of this very device by this version; None where there is nothing of it."""
    try:
        machine = _parse(Fields(read_json_object(record_path(device)), "machine"))
    except BadConfig:
        return None
    return machine if (machine.device, machine.device_name) == (device, device_name) else None


def processor_name() -> str:
    """The processor's name with its cores, as measurements of it are kept under."""
    match = re.search(r"^model name\s*:\s*(.+)$", processor_facts(), re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name}, {psutil.cpu_count(logical=False) or os.cpu_count()} cores"


def processor_facts() -> str:
    """What Linux tells of the processor; "" elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse(fields: Fields) -> Machine:
    if fields.integer("version", 0, 1 << 31) != VERSION:
        fields.fail("version", "is another")
    hardware, rates = _section(fields, "hardware"), _section(fields, "rates")
    readings = fields.raw("readings")
    if not isinstance(readings, list) or not all(isinstance(item, dict) for item in readings):
        fields.fail("readings", "must be a list of objects")
    return Machine(
        device=_text(fields, "device"),
        device_name=_text(fields, "device_name"),
        dtype=_text(fields, "dtype"),
        measured_at=_text(fields, "measured_at"),
        others_share=fields.number("others_share", 0.0, 1.0),
        hardware=Hardware(
            *(_rate(hardware, f"{name}_per_second") for name in ("matmul_flop", "copy_bytes", "read_bytes")),
            *(
                _rate_or_none(hardware, f"{name}_per_second")
                for name in (
                    "pinned_bytes",
                    "pageable_bytes",
                    "written_bytes",
                    "gather_bytes",
                    "int8_flop",
                    "fp8_flop",
                )
            ),
        ),
        model=_text(fields, "model"),
        readings=tuple(_reading(Fields(item, "machine", "readings.")) for item in readings),
        rates=_rates(rates),
    )


def _rates(fields: Fields) -> Rates:
    bus, narrow = fields.section("bus"), _section(fields, "narrow_flop")
    return Rates(
        **{
            name: _rate(fields, name)
            for name in ("matmul_flop", "memory_bytes", "channels", "dense_flop", "sparse_flop", "score_flop")
        },
        **{name: _seconds(fields, name) for name in ("layer_step_seconds", "layer_chunk_seconds")},
        narrow_flop={name: _rate(narrow, name) for name in ("int8", "fp8") if narrow.raw(name) is not None},
        bus=None
        if bus is None
        else Bus(
            **{name: _rate(bus, name) for name in ("read_bytes", "write_bytes", "gather_bytes")},
            **{name: _seconds(bus, name) for name in ("fetch_seconds", "piece_token_seconds", "lock_byte_seconds")},
        ),
    )


def _reading(fields: Fields) -> Reading:
    return Reading(
        fields.integer("position", 0, 1 << 40),
        _rate(fields, "prefill_tokens_per_second"),
        _rate_or_none(fields, "decode_steps_per_second"),
    )


def _section(fields: Fields, name: str) -> Fields:
    section = fields.section(name)
    if section is None:
        fields.fail(name, "is missing")
    return section


def _text(fields: Fields, name: str) -> str:
    value = fields.raw(name)
    if not isinstance(value, str):
        fields.fail(name, "must be a text")
    return value


def _seconds(fields: Fields, name: str) -> float:
    return fields.number(name, 0.0, 1e6)


def _rate(fields: Fields, name: str) -> float:
    return fields.number(name, 1e-9, _MOST)


def _rate_or_none(fields: Fields, name: str) -> float | None:
    return None if fields.raw(name) is None else _rate(fields, name)
