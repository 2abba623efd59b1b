"""The writer's bytes are the format's, the same every time, and readable by the library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from salalocal.weights.safetensors_header import read_header
from salalocal.weights.safetensors_writer import write_safetensors

TENSORS = {
    "codes": torch.tensor([[1, -1]], dtype=torch.int8),
    "scales": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16),
    "words": torch.tensor([0x76543210], dtype=torch.int32),
}


def test_literal_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checksum = write_safetensors(path, TENSORS, {"version": "1", "format": "é"})
    header = (
        '{"__metadata__":{"format":"é","version":"1"},'
        '"words":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},'
        '"scales":{"dtype":"BF16","shape":[1,2],"data_offsets":[4,8]},'
        '"codes":{"dtype":"I8","shape":[1,2],"data_offsets":[8,10]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = bytes.fromhex("10325476") + bytes.fromhex("803f00c0") + bytes.fromhex("01ff")
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + data
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        **TENSORS,
        "empty": torch.empty(0, 3, dtype=torch.uint8),
        "strided": torch.arange(12.0).view(3, 4).t(),
        "scalar": torch.tensor(2.5),
    }
    write_safetensors(path, tensors, {"a": "b"})
    found = load_file(path)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": "b"}
    entries, metadata = read_header(path)
    assert (set(entries), metadata) == (set(tensors), {"a": "b"})


def test_a_dtype_that_is_not_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_safetensors(tmp_path / "x", {"x": torch.zeros(2, dtype=torch.complex64)}, {})
    assert list(tmp_path.iterdir()) == []
