"""Other weights, another fingerprint; the same files elsewhere, the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from salalocal.errors import BadCheckpoint
from salalocal.weights.fingerprint import fingerprint


def test_every_byte_of_small_files_counts(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(1 << 16)
    (tmp_path / "a").write_bytes(data)
    before = fingerprint([tmp_path / "a"])
    for at in (0, 1, 12345, len(data) - 1):
        (tmp_path / "b").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert fingerprint([tmp_path / "b"]) != before
    (tmp_path / "c").write_bytes(data)
    assert fingerprint([tmp_path / "c"]) == before
    assert fingerprint([tmp_path / "a", tmp_path / "c"]) != before


def test_large_files_are_sampled_from_end_to_end(tmp_path: Path) -> None:
    data = bytearray(random.Random(0).randbytes(3 << 20))
    (tmp_path / "a").write_bytes(data)
    before = fingerprint([tmp_path / "a"])
    (tmp_path / "b").write_bytes(data + b"x")
    assert fingerprint([tmp_path / "b"]) != before
    for at in (0, len(data) - 1):
        (tmp_path / "b").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert fingerprint([tmp_path / "b"]) != before
    for begin in (0, 1 << 20, (3 << 20) - 16384):
        other = bytearray(data)
        other[begin : begin + 16384] = bytes(16384)
        (tmp_path / "b").write_bytes(other)
        assert fingerprint([tmp_path / "b"]) != before, f"a changed tensor of 16 KiB at {begin}"


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"gone: cannot be read \(No such file"):
        fingerprint([tmp_path / "gone"])
