"""Files of strips: the bytes on the disk, views as targets, several threads, and what is refused."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salalocal.cache import strip_file
from salalocal.cache.strip_file import plan_reading, read_strips, write_tensors
from salalocal.errors import BadSession


def tensors() -> dict[str, torch.Tensor]:
    return {
        "ids": torch.arange(7, dtype=torch.int32),
        "kv": torch.randn(2, 2, 50, 6)[:, :, 3:40].to(torch.bfloat16),
        "none": torch.empty(2, 0, 6),
        "wide": torch.randn(3, 5, dtype=torch.float64),
    }


def test_literal_bytes(tmp_path: Path) -> None:
    sums = write_tensors(tmp_path / "f", {"a": torch.tensor([1, -2], dtype=torch.int32)})
    header = b'{"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (-len(header) % 8)
    assert (tmp_path / "f").read_bytes() == len(header).to_bytes(8, "little") + header + b"\1\0\0\0\xfe\xff\xff\xff"
    assert sums == (zlib.crc32(b"\1\0\0\0\xfe\xff\xff\xff"),)


def test_the_library_reads_them(tmp_path: Path) -> None:
    written = tensors()
    write_tensors(tmp_path / "f", written)
    found = load_file(tmp_path / "f")
    assert found.keys() == written.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize("batch_bytes", [1, 1000, 1 << 20])
def test_straight_into_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    monkeypatch.setattr(strip_file, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(strip_file, "_PIECE_BYTES", 100)
    written = tensors()
    sums = write_tensors(tmp_path / "f", written)
    assert len(sums) == 1 + 4 + 2 + 1
    store = torch.zeros(2, 2, 90, 6, dtype=torch.bfloat16)
    targets = {name: torch.zeros_like(tensor) for name, tensor in written.items()} | {"kv": store[:, :, 10:47]}
    read_strips(plan_reading(tmp_path / "f", targets, sums))
    assert all(torch.equal(targets[name], tensor) for name, tensor in written.items())
    assert not store[:, :, :10].any()
    assert not store[:, :, 47:].any()


def test_one_bad_strip_of_many_is_found_by_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip_file, "_BATCH_BYTES", 1)
    written = tensors()
    sums = write_tensors(tmp_path / "f", written)
    for index in range(len(sums)):
        wrong = (*sums[:index], sums[index] ^ 1, *sums[index + 1 :])
        with pytest.raises(BadSession, match="f: is damaged at bytes"):
            read_strips(plan_reading(tmp_path / "f", {name: each.clone() for name, each in written.items()}, wrong))


def test_shortened_between_planning_and_reading(tmp_path: Path) -> None:
    written = tensors()
    strips = plan_reading(tmp_path / "f", written, write_tensors(tmp_path / "f", written))
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-1])
    with pytest.raises(BadSession, match="f: is damaged"):
        read_strips(strips)
    (tmp_path / "f").unlink()
    with pytest.raises(BadSession, match="f: cannot be read"):
        read_strips(strips)


def test_other_shapes_and_dtypes_are_other_files(tmp_path: Path) -> None:
    sums = write_tensors(tmp_path / "f", {"a": torch.zeros(2, 6), "b": torch.zeros(4)})
    for targets in (
        {"a": torch.zeros(3, 4), "b": torch.zeros(4)},
        {"b": torch.zeros(4), "a": torch.zeros(2, 6)},
        {"a": torch.zeros(2, 6), "b": torch.zeros(4, dtype=torch.int32)},
    ):
        with pytest.raises(BadSession, match="its header is not that of this session"):
            plan_reading(tmp_path / "f", targets, sums)


def test_files_are_not_written_over(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", tensors())
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "f", tensors())
