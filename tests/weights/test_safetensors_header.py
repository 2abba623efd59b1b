"""The header check: every damaged file is refused with its name before a byte of a tensor is read."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from salalocal.errors import BadCheckpoint
from salalocal.weights.safetensors_header import HeaderEntry, read_header

Header = dict[str, Any]
GOOD: Header = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "U8", "shape": [0, 7], "data_offsets": [32, 32]},
    "scalar": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}


def write(folder: Path, header: Header | bytes, data: int = 40, announced: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if announced is None else announced) + text + bytes(data))
    return path


def changed(name: str, **fields: object) -> Header:
    return {**GOOD, name: {**GOOD[name], **fields}}


def refuse(path: Path, problem: str) -> None:
    with pytest.raises(BadCheckpoint, match=re.escape(problem)) as refused:
        read_header(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 700


def test_a_sound_file(tmp_path: Path) -> None:
    entries, metadata = read_header(write(tmp_path, {**GOOD, "__metadata__": {"format": "pt"}}))
    assert entries["a"] == HeaderEntry("F32", (2, 3), 0, 24)
    assert entries["scalar"].shape == ()
    assert metadata == {"format": "pt"}


def test_the_librarys_own_files_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool)
    tensors = {f"t{n}": torch.zeros(n + 1, 3, dtype=kind) for n, kind in enumerate(kinds)}
    save_file(tensors, path, metadata={"k": "v"})
    entries, metadata = read_header(path)
    assert {name: entry.shape for name, entry in entries.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert metadata == {"k": "v"}


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path, GOOD).read_bytes()
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(BadCheckpoint, match=re.escape(str(path))):
            read_header(path)


@pytest.mark.parametrize("announced", [0, 1, 7, 200_000_000, 1 << 62, (1 << 64) - 1])
def test_header_lengths_that_lie(announced: int, tmp_path: Path) -> None:
    refuse(write(tmp_path, GOOD, announced=announced), "header")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xff", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":1,"a":1}', "a name stands twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "a name stands twice"),
        ({**GOOD, "__metadata__": {"a": 1}}, "__metadata__ must map strings to strings"),
        ({**GOOD, "__metadata__": "x"}, "__metadata__ must map strings to strings"),
        ({"a": 3}, "tensor 'a' needs exactly dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "tensor 'a' needs exactly"),
        ({"a": {**GOOD["a"], "extra": 1}}, "tensor 'a' needs exactly"),
        (changed("a", dtype="F31"), "tensor 'a' has dtype 'F31', known are"),
        (changed("a", dtype=7), "tensor 'a' has dtype 7"),
        (changed("a", dtype="x" * 10_000), "tensor 'a' has dtype"),
        (changed("a", shape=6), "tensor 'a' has a shape that is not a list"),
        (changed("a", shape=[2, -3]), "tensor 'a' has a shape that is not a list"),
        (changed("a", shape=[2.0, 3]), "tensor 'a' has a shape that is not a list"),
        (changed("a", shape=[True, 6]), "tensor 'a' has a shape that is not a list"),
        (changed("a", shape=[1 << 63]), "tensor 'a' has a shape that is not a list"),
        (changed("a", shape=[1] * 9), "tensor 'a' has a shape that is not a list of at most 8"),
        (changed("a", shape=[1 << 61] * 8), "tensor 'a' of shape"),
        (changed("a", shape=[2, 4]), "tensor 'a' of shape [2, 4] in F32 needs 32 bytes, its offsets give 24"),
        (changed("a", dtype="F64"), "tensor 'a' of shape [2, 3] in F64 needs 48 bytes"),
        (changed("a", data_offsets=[0]), "tensor 'a' has data_offsets that are not"),
        (changed("a", data_offsets=[24, 0]), "tensor 'a' has data_offsets that are not"),
        (changed("a", data_offsets=[-24, 0]), "tensor 'a' has data_offsets that are not"),
        (changed("a", data_offsets=["0", "24"]), "tensor 'a' has data_offsets that are not"),
        (changed("b", data_offsets=[20, 28]), "tensor 'b' overlaps the one before it (begins at 20, expected 24)"),
        (changed("b", data_offsets=[0, 8]), "overlaps the one before it"),
        (changed("scalar", data_offsets=[1000, 1008]), "tensor 'scalar' ends at byte 1,008 of 40"),
        ({name: GOOD[name] for name in ("a", "scalar")}, "tensor 'scalar' leaves a hole before it"),
        ({name: GOOD[name] for name in ("b",)}, "tensor 'b' leaves a hole before it"),
        ({name: GOOD[name] for name in ("a", "b")}, "8 bytes after the last tensor belong to nothing"),
        ({"n" * 100_000: 3}, "needs exactly"),
        ({"n" * 100_000: {**GOOD["a"], "shape": [5]}}, "needs 20 bytes"),
        ({"n" * 100_000: {**GOOD["a"], "data_offsets": [50, 74]}}, "ends at byte 74"),
        ({}, "40 bytes after the last tensor belong to nothing"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_headers_that_are_wrong(header: Header | bytes, problem: str, tmp_path: Path) -> None:
    refuse(write(tmp_path, header), problem)


def test_trailing_bytes(tmp_path: Path) -> None:
    refuse(write(tmp_path, GOOD, data=41), "1 bytes after the last tensor belong to nothing")


def test_a_product_without_bound_is_not_formed(tmp_path: Path) -> None:
    started = time.perf_counter()
    refuse(write(tmp_path, changed("a", shape=[(1 << 62) - 1] * 100_000)), "list of at most 8 sizes")
    assert time.perf_counter() - started < 5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    refuse(tmp_path / "none.safetensors", "cannot be read")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), value=st.integers(0, 255))
def test_one_changed_byte_never_gives_another_error(at: int, value: int, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    content = bytearray(path.read_bytes())
    content[at % len(content)] = value
    path.write_bytes(content)
    with contextlib.suppress(BadCheckpoint):
        entries, _ = read_header(path)
        assert sum(entry.end - entry.begin for entry in entries.values()) == 40
