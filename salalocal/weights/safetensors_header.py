"""Checks a safetensors header down to the last byte before anything is read. Knows no torch.

Format: 8 bytes little-endian header length, a JSON header, then the values; offsets count from the header's end.
Source: the format section of the safetensors README. The library would refuse most of these files too, but without
naming file and tensor.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from salalocal.errors import BadCheckpoint
from salalocal.fields import shorten

MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor: the format's dtype word, its shape, and its bytes [begin, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> tuple[dict[str, HeaderEntry], dict[str, str]]:
    """Reads and checks the header of `path`.

    Returns:
        Entries by tensor name, and the file's string metadata.

    Raises:
        BadCheckpoint: naming the file, and the tensor where it is one tensor's fault: truncated, not JSON, unknown
            dtype, shape that contradicts the bytes, overlapping, missing or trailing bytes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise BadCheckpoint(
                    f"{path}: header of {length:,} bytes announced in a file of {size:,}; the file is truncated or "
                    "not safetensors"
                )
            text = file.read(length)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read ({error.strerror or error})") from error
    entries: dict[str, HeaderEntry] = {}
    metadata: dict[str, str] = {}
    for name, value in _parse(path, text).items():
        if name == "__metadata__":
            if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
                raise BadCheckpoint(f"{path}: __metadata__ must map strings to strings")
            metadata = value
        else:
            entries[name] = _entry(path, name, value)
    _check_layout(path, entries, size - 8 - length)
    return entries, metadata


def _parse(path: Path, text: bytes) -> dict[str, object]:
    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise BadCheckpoint(f"{path}: a name stands twice in the header")
        return result

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path}: the header is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{path}: the header is not a JSON object")
    return value


def _entry(path: Path, name: str, value: object) -> HeaderEntry:
    def fail(problem: str) -> NoReturn:
        raise BadCheckpoint(f"{path}: tensor {shorten(name)} {problem}")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        fail("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        fail(f"has dtype {shorten(dtype)}, known are {', '.join(_ITEM_BYTES)}")
    # Bounded before they are multiplied or shown: a long list of large sizes makes a number of any length.
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        fail(f"has a shape that is not a list of at most {_MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail("has data_offsets that are not [begin, end]")
    needed = math.prod(shape) * _ITEM_BYTES[dtype]
    if needed != offsets[1] - offsets[0]:
        fail(f"of shape {shape} in {dtype} needs {needed:,} bytes, its offsets give {offsets[1] - offsets[0]:,}")
    return HeaderEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in value
    )


def _check_layout(path: Path, entries: dict[str, HeaderEntry], data_bytes: int) -> None:
    """Tensors must fill the data without holes, overlaps or a rest."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > data_bytes:
            raise BadCheckpoint(
                f"{path}: tensor {shorten(name)} ends at byte {entry.end:,} of {data_bytes:,}; the file is truncated"
            )
        if entry.begin != at:
            problem = "overlaps the one before it" if entry.begin < at else "leaves a hole before it"
            raise BadCheckpoint(
                f"{path}: tensor {shorten(name)} {problem} (begins at {entry.begin:,}, expected {at:,})"
            )
        at = entry.end
    if at != data_bytes:
        raise BadCheckpoint(f"{path}: {data_bytes - at:,} bytes after the last tensor belong to nothing")
