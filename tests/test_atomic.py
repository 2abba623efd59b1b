"""A file is the old one or the new one, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from salalocal import atomic
from salalocal.atomic import remove_partial_files, replacing


def test_the_new_content_takes_the_place(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_nothing_has_changed(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["config.json"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"1" * 1000)
        second.write(b"2" * 2000)
    assert path.read_bytes() == b"1" * 1000


def test_a_file_held_by_a_scanner_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    replace = os.replace

    def held_twice(source: Path, target: Path) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(13, "held")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", held_twice)
    monkeypatch.setattr(atomic, "_RENAME_WAIT_SECONDS", 0.0)
    with replacing(tmp_path / "x") as file:
        file.write(b"there")
    assert (tmp_path / "x").read_bytes() == b"there"
    monkeypatch.setattr(atomic.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "held")))
    with pytest.raises(PermissionError), replacing(tmp_path / "y") as file:
        file.write(b"never")
    assert os.listdir(tmp_path) == ["x"]


def test_leftovers_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in (".x.0123.partial", "x.partial", ".x", "x"):
        (tmp_path / name).write_text("")
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".x", "x", "x.partial"]
