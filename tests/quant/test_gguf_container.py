"""The container: what is read, and that no damage ends in anything but `GgufError`."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from salalocal_quant import GgufError, GgufFile

Write = Callable[..., Path]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "count": 7,
    "eps": 0.5,
    "flag": True,
    "tokens": ["a", "ß", ""],
    "types": [1, -3, 2],
}
TENSORS = {
    "one": ((2, 3), "F32", struct.pack("<6f", *range(6))),
    "two": ((32,), "Q8_0", struct.pack("<e", 1.0) + bytes(range(32))),
    "three": ((4,), "F16", struct.pack("<4e", 1, 2, 3, 4)),
}


def read_everything(path: Path) -> dict[str, torch.Tensor]:
    with GgufFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def test_metadata_and_tensors(write_gguf: Write) -> None:
    with GgufFile(write_gguf(METADATA, TENSORS)) as file:
        assert dict(file.metadata) == METADATA
        assert [(t.name, t.shape, t.ggml_type, t.n_bytes) for t in file.tensors.values()] == [
            ("one", (2, 3), "F32", 24),
            ("two", (32,), "Q8_0", 34),
            ("three", (4,), "F16", 8),
        ]
        assert file.read("one").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        assert file.read("two").tolist() == [float(value) for value in range(32)]
        kept = file.read("three")
        with pytest.raises(GgufError, match="no tensor 'four'"):
            file.read("four")
    assert kept.tolist() == [1.0, 2.0, 3.0, 4.0]  # a copy: valid after the file is closed


def test_alignment_of_the_file_is_followed(write_gguf: Write) -> None:
    path = write_gguf({"general.alignment": 256}, TENSORS, alignment=256)
    assert read_everything(path)["three"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_truncation_at_every_byte(write_gguf: Write, tmp_path: Path) -> None:
    whole = write_gguf(METADATA, TENSORS).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(GgufError, match=r"cut\.gguf"):
            read_everything(cut)


def test_every_header_byte_changed(write_gguf: Write, tmp_path: Path) -> None:
    whole = write_gguf(METADATA, TENSORS).read_bytes()
    changed = tmp_path / "changed.gguf"
    refused = []
    for position in range(len(whole)):
        for value in {0x00, 0x80, 0xFF, whole[position] ^ 0x01, whole[position] ^ 0x20} - {whole[position]}:
            changed.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            with contextlib.suppress(GgufError):  # some bytes are text or weights: then it is another sound file
                read_everything(changed)
                continue
            refused.append(position)
    assert len(refused) > len(whole)


def patched(whole: bytes, old: bytes, new: bytes) -> bytes:
    assert whole.count(old) == 1, "the test must change exactly one place"
    return whole.replace(old, new)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


HUGE = u64((1 << 63) - 1)
DAMAGE: dict[str, tuple[bytes, bytes, str]] = {
    "magic": (b"GGUF", b"GGML", "not a GGUF file"),
    "version 1": (b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0", "version 1 is not read"),
    "big-endian": (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "big-endian"),
    "tensor count": (b"\x03\0\0\0" + u64(3) + u64(6), b"\x03\0\0\0" + HUGE + u64(6), "tensor count is 9223"),
    "key count": (b"\x03\0\0\0" + u64(3) + u64(6), b"\x03\0\0\0" + u64(3) + HUGE, "metadata count is 9223"),
    "key length": (u64(5) + b"count", HUGE + b"count", "key 1 of the metadata is 9223"),
    "string length": (u64(5) + b"llama", HUGE + b"llama", "'general.architecture'"),
    "array length": (struct.pack("<IQ", 8, 3), struct.pack("<IQ", 8, 1 << 60), "length of the array 'tokens'"),
    "nested array": (struct.pack("<IIQ", 9, 8, 3), struct.pack("<IIQ", 9, 9, 3), "'tokens' has elements of the"),
    "value type": (b"count" + struct.pack("<I", 4), b"count" + struct.pack("<I", 99), "'count' has the unknown"),
    "bool": (b"flag" + struct.pack("<I?", 7, True), b"flag" + struct.pack("<IB", 7, 2), "bool with the value 2"),
    "doubled key": (u64(4) + b"flag", u64(3) + b"eps", "'eps' is there twice"),
    "not UTF-8": ("ß".encode(), b"\xff\xfe", "element 1 of the array 'tokens' is not UTF-8"),
    "dimensions": (b"two" + struct.pack("<I", 1), b"two" + struct.pack("<I", 5), "'two' has 5 dimensions"),
    "no dimension": (b"two" + struct.pack("<I", 1), b"two" + struct.pack("<I", 0), "'two' has 0 dimensions"),
    "empty": (u64(3) + u64(2), u64(0) + u64(2), "'one' claims the shape"),
    "absurd shape": (u64(3) + u64(2), HUGE + HUGE, "'one' claims the shape"),
    "partial block": (u64(32) + struct.pack("<I", 8), u64(31) + struct.pack("<I", 8), "'two' has rows of 31"),
    "type": (u64(32) + struct.pack("<I", 8), u64(32) + struct.pack("<I", 77), "'two' has the unknown ggml type 77"),
    "offset": (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 1 << 40), "'two' needs 34 bytes"),
    "unaligned": (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 33), "not a multiple of 32"),
    "overlap": (struct.pack("<IQ", 8, 32), struct.pack("<IQ", 8, 0), "'one' and 'two' overlap"),
    "doubled name": (u64(3) + b"two", u64(3) + b"one", "'one' is listed twice"),
    "long name": (u64(3) + b"two", u64(65) + b"two", "tensor name is 65 bytes long; the limit is 64"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_costs_nothing(write_gguf: Write, tmp_path: Path, name: str) -> None:
    old, new, message = DAMAGE[name]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(patched(write_gguf(METADATA, TENSORS).read_bytes(), old, new))
    tracemalloc.start()
    try:
        with pytest.raises(GgufError, match=r"damaged\.gguf") as caught:
            GgufFile(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize("alignment", [0, 3, 1 << 31, True, "32"])
def test_alignment_is_checked(write_gguf: Write, alignment: object) -> None:
    with pytest.raises(GgufError, match=r"general\.alignment"):
        GgufFile(write_gguf({"general.alignment": alignment}, TENSORS))


def test_reading_holds_one_copy(write_gguf: Write) -> None:
    elements = 4 << 20
    with GgufFile(write_gguf({}, {"big": ((elements,), "F16", bytes(2 * elements))})) as file:
        tracemalloc.start()
        try:
            tensor = file.read("big")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert tensor.numel() == elements
    # torch's own 16 MiB are not traced; a second copy of the tensor would be 8 (raw) or 16 MiB more.
    assert peak_bytes < 8 << 20


def test_no_file_and_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GgufFile(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(GgufError, match="0 bytes are too few"):
        GgufFile(tmp_path / "empty.gguf")
