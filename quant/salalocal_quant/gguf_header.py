"""Walks the metadata of a GGUF file with every length checked. Knows bytes and limits, no tensors.

Source of the layout: ggml's docs/gguf.md. Strings are a u64 length and UTF-8 bytes; an array is an element
type, a u64 count and the elements; arrays of arrays, which no writer makes, are refused.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping

import numpy as np

MAX_KEY_BYTES = 65535
MAX_ARRAY_ELEMENTS = 1 << 22  # over all arrays of a file: ten times the tokens and merges of today's largest

Scalar = int | float | bool | str
Metadata = Mapping[str, Scalar | list[Scalar]]

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, tuple[str, str]] = {  # type id -> (struct format, numpy format)
    0: ("<B", "u1"),
    1: ("<b", "i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<?", "?"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}


class GgufError(ValueError):
    """A GGUF file is damaged, or holds something that is not read; the message names file and place."""


class HeaderReader:
    """A cursor over the header; each method names what it reads, so that an error can say where it broke."""

    def __init__(self, data: mmap.mmap, file: str) -> None:
        self._data = data
        self.file = file
        self.size = len(data)
        self.position = 0
        self.array_elements = 0

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes. Raises `GgufError` when the file has fewer."""
        if count > self.size - self.position:
            raise GgufError(
                f"{self.file}: cut off or damaged in {what}: {count} bytes are needed at {self.position}, "
                f"the file ends at {self.size}"
            )
        start, self.position = self.position, self.position + count
        return self._data[start : self.position]

    def scalar(self, type_id: int, what: str) -> int | float | bool:
        """The next value of a fixed-size GGUF type."""
        layout = _SCALARS[type_id][0]
        raw = self.take(struct.calcsize(layout), what)
        if type_id == 7 and raw not in (b"\0", b"\1"):
            raise GgufError(f"{self.file}: {what} is a bool with the value {raw[0]}")
        value: int | float | bool = struct.unpack(layout, raw)[0]
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar(4, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(10, what))

    def string(self, what: str, limit_bytes: int | None = None) -> str:
        """The next length-prefixed string."""
        length = self.u64(what)
        if limit_bytes is not None and length > limit_bytes:
            raise GgufError(f"{self.file}: {what} is {length} bytes long; the limit is {limit_bytes}")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise GgufError(f"{self.file}: {what} is not UTF-8") from None


def read_count(header: HeaderReader, what: str, limit: int, least_bytes_each: int) -> int:
    """A u64 count of things that follow, refused when the file cannot hold as many or `limit` is passed."""
    count = header.u64(what)
    possible = min(limit, (header.size - header.position) // least_bytes_each)
    if count > possible:
        raise GgufError(f"{header.file}: {what} is {count}; at most {possible} are possible in this file")
    return count


def read_metadata(header: HeaderReader, count: int) -> dict[str, Scalar | list[Scalar]]:
    """The `count` key-value pairs at the cursor. Raises `GgufError` for unknown types and doubled keys."""
    metadata: dict[str, Scalar | list[Scalar]] = {}
    for index in range(count):
        key = header.string(f"key {index} of the metadata", MAX_KEY_BYTES)
        if key in metadata:
            raise GgufError(f"{header.file}: the key {key[:80]!r} is there twice")
        shown = key[:80]  # in messages; a damaged length can make half the file a key
        type_id = header.u32(f"the type of {shown!r}")
        metadata[key] = _array(header, shown) if type_id == _ARRAY else _value(header, type_id, shown)
    return metadata


def _value(header: HeaderReader, type_id: int, key: str) -> Scalar:
    if type_id == _STRING:
        return header.string(f"the value of {key!r}")
    if type_id not in _SCALARS:
        raise GgufError(f"{header.file}: {key!r} has the unknown value type {type_id}")
    return header.scalar(type_id, f"the value of {key!r}")


def _array(header: HeaderReader, key: str) -> list[Scalar]:
    what = f"the array {key!r}"
    type_id = header.u32(f"the element type of {key!r}")
    if type_id != _STRING and type_id not in _SCALARS:
        raise GgufError(f"{header.file}: {what} has elements of the type {type_id}, which is not read")
    item_bytes = 8 if type_id == _STRING else struct.calcsize(_SCALARS[type_id][0])
    limit = MAX_ARRAY_ELEMENTS - header.array_elements
    count = read_count(header, f"the length of {what}", limit, least_bytes_each=item_bytes)
    header.array_elements += count
    if type_id == _STRING:
        return [header.string(f"element {index} of {what}") for index in range(count)]
    raw = header.take(count * item_bytes, what)
    if type_id == 7 and raw.strip(b"\0\1"):
        raise GgufError(f"{header.file}: {what} holds bools that are neither 0 nor 1")
    values: list[Scalar] = np.frombuffer(raw, dtype=_SCALARS[type_id][1]).tolist()
    return values
