"""A folder or repository: what is read, in which order, and what is left out with which reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from salalocal.documents import Document, read
from salalocal.documents.limits import DEFAULT_LIMITS
from salalocal.documents.reader import read_within
from salalocal.errors import BadDocument

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def paths(document: Document) -> list[str]:
    return [file.path for file in document.files]


def reasons(document: Document) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in document.skipped}


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.invalid", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_library_order(tmp_path: Path) -> None:
    fill(tmp_path, dict.fromkeys(("b/2.txt", "b/10.txt", "a10.md", "a2.md", "B/1.txt", "a2/z.txt"), "x"))
    calls: list[tuple[int, int]] = []
    document = read(tmp_path, on_progress=lambda done, total: calls.append((done, total)))
    assert paths(document) == ["a2/z.txt", "a2.md", "a10.md", "B/1.txt", "b/2.txt", "b/10.txt"]
    assert document.name == tmp_path.name
    assert calls == [(done, 6) for done in range(7)]


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "read.py": "print('x')\n",
            ".env": "KEY=1",
            ".env.example": "KEY=",
            "deploy/id_rsa": "x",
            "deploy/id_rsa.pub": "x",
            "deploy/server.pem": "x",
            ".aws/config": "x",
            "notes.txt": "-----BEGIN RSA PRIVATE KEY-----\nabc\n",
            "lib.min.js": "x",
            "app.js": "var a=1;" * 1000,
            "prose.txt": "one long line of prose " * 1000,
            "photo.png": b"\x89PNG\r\n\x1a\n",
            "binary.txt": b"\x00\x01\x02\x03" * 100,
            "bad.txt": "naïve café\n".encode() * 9 + b"\xe9",
            "empty.py": "",
            "old.doc": "x",
            "books.zip": b"PK",
            "node_modules/x/index.js": "x",
        },
    )
    document = read(tmp_path)
    assert paths(document) == [".env.example", "deploy/id_rsa.pub", "prose.txt", "read.py"]
    found = reasons(document)
    assert list(found) == sorted(found, key=str.casefold)
    for path, reason in {
        ".env": "may hold a secret",
        "deploy/id_rsa": "may hold a secret",
        "deploy/server.pem": "may hold a secret",
        ".aws/config": "may hold a secret",
        "notes.txt": "holds a private key",
        "lib.min.js": "is minified",
        "app.js": "is minified (8,000 characters a line",
        "photo.png": "is binary (.png)",
        "binary.txt": "is binary",
        "bad.txt": "is UTF-8 but damaged",
        "empty.py": "is empty",
        "old.doc": "save it as .docx",
        "books.zip": "is an archive",
        "node_modules/": "tools generate",
    }.items():
        assert reason in found.pop(path), path
    assert found == {}


def test_oversized_files_are_left_out_not_cut(tmp_path: Path) -> None:
    fill(tmp_path, {"a.txt": "x" * 2000, "b.txt": "x" * 1000})
    document = read_within(tmp_path, replace(DEFAULT_LIMITS, folder_text_bytes=1000))
    assert paths(document) == ["b.txt"]
    assert reasons(document) == {"a.txt": "is too large (2.0 KB; the limit is 1,000 bytes)"}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"folder_files": 2}, "holds more than 2 files: name a folder further down"),
        ({"total_bytes": 2}, "holds more than 2 bytes of files: name a folder further down"),
    ],
)
def test_folders_past_a_limit_are_refused(tmp_path: Path, limits: dict[str, int], message: str) -> None:
    fill(tmp_path, {"a.txt": "x", "b/c.txt": "x", "d.txt": "x"})
    with pytest.raises(BadDocument, match=message):
        read_within(tmp_path, replace(DEFAULT_LIMITS, **limits))


def test_folders_without_text(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match=f"{tmp_path.name} holds no files"):
        read(tmp_path)
    fill(tmp_path, {"a.png": "x", "b.png": "x"})
    with pytest.raises(BadDocument, match=r"holds no file that can be read: 2 left out, the first a.png \(is binary"):
        read(tmp_path)


def test_links_pipes_and_loops(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"secret.txt": "secret"})
    folder = fill(tmp_path / "folder", {"a.txt": "text"})
    (folder / "leaves.txt").symlink_to(outside / "secret.txt")
    (folder / "leaves").symlink_to(outside)
    (folder / "inside.txt").symlink_to("a.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "broken").symlink_to("nothing")
    os.mkfifo(folder / "pipe.txt")
    document = read(folder)
    assert paths(document) == ["a.txt"]
    found = reasons(document)
    assert found["leaves.txt"] == found["leaves"] == "is a symbolic link that leaves the folder"
    assert found["inside.txt"] == "is a symbolic link to a.txt; links are not followed"
    assert found["pipe.txt"] == "is a device, pipe or socket, not a file"
    assert set(found) == {"leaves.txt", "leaves", "inside.txt", "loop", "self", "broken", "pipe.txt"}


def test_names_are_safe_to_print(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/bad\xff\x1b[2J.txt", "w") as file:
        file.write("x")
    assert paths(read(tmp_path)) == ["bad\\xff\\x1b[2J.txt"]


def test_rich_files_in_folders(
    tmp_path: Path, make_pdf: Callable[..., bytes], make_epub: Callable[..., bytes], make_docx: Callable[..., bytes]
) -> None:
    fill(
        tmp_path,
        {
            "a.pdf": make_pdf([["one"], ["two"]]),
            "b/c.epub": make_epub({"1.xhtml": "<h2>Start</h2>"}),
            "d.docx": make_docx(["hello"]),
            "locked.pdf": make_pdf([["x"]], encrypted=True),
        },
    )
    document = read(tmp_path)
    assert paths(document) == ["a.pdf", "b/c.epub/1 Start", "d.docx"]
    assert "needs a password" in reasons(document)["locked.pdf"]


IGNORING = {
    ".gitignore": "*.log\n/build/\n!keep.log\n[\n",
    "a.py": "x",
    "a.log": "x",
    "keep.log": "x",
    "build/out.txt": "x",
    "sub/.gitignore": "local.txt\n!special.log\n",
    "sub/local.txt": "x",
    "sub/special.log": "x",
    "sub/build/kept.txt": "x",
}


@pytest.mark.parametrize(
    "with_git", [pytest.param(True, marks=needs_git, id="git"), pytest.param(False, id="pathspec")]
)
def test_gitignore(tmp_path: Path, with_git: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, dict(IGNORING))
    if with_git:
        git(tmp_path, "init")
    else:
        monkeypatch.setenv("PATH", "")
    document = read(tmp_path)
    assert paths(document) == [
        ".gitignore",
        "a.py",
        "keep.log",
        "sub/.gitignore",
        "sub/build/kept.txt",
        "sub/special.log",
    ]
    assert reasons(document) == dict.fromkeys(("a.log", "build/", "sub/local.txt"), "is ignored by .gitignore")


def test_a_hostile_ignore_pattern_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    fill(tmp_path, {".gitignore": "*a" * 20 + "*b\n*.log\n", "a" * 200: "x", "a.log": "x"})
    start = time.perf_counter()
    assert paths(read(tmp_path)) == [".gitignore", "a" * 200]
    assert time.perf_counter() - start < 5.0


@needs_git
def test_a_folder_that_is_ignored_itself_is_read(tmp_path: Path) -> None:
    fill(tmp_path, {".gitignore": "vendor/\n", "vendor/lib.py": "x"})
    git(tmp_path, "init")
    assert paths(read(tmp_path / "vendor")) == ["lib.py"]


@needs_git
def test_part_of_a_repository_keeps_its_rules(tmp_path: Path) -> None:
    fill(tmp_path, {".gitignore": "*.log\n", "part/a.py": "x", "part/a.log": "x"})
    git(tmp_path, "init")
    document = read(tmp_path / "part")
    assert paths(document) == ["a.py"]
    assert reasons(document) == {"a.log": "is ignored by .gitignore"}


@needs_git
def test_repositories_in_repositories(tmp_path: Path) -> None:
    fill(tmp_path, {"a.py": "x", "inner/.gitignore": "*.log\n", "inner/b.py": "x", "inner/b.log": "x"})
    git(tmp_path, "init")
    git(tmp_path / "inner", "init")
    document = read(tmp_path)
    assert paths(document) == ["a.py", "inner/.gitignore", "inner/b.py"]
    assert reasons(document) == {"inner/b.log": "is ignored by .gitignore"}


@needs_git
def test_tracked_files_that_are_gone_or_behind_a_link(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", {"b.py": "secret"})
    folder = fill(tmp_path / "repo", {"a.py": "x", "gone.py": "x", "sub/b.py": "x"})
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "x")
    (folder / "gone.py").unlink()
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(outside)
    document = read(folder)
    assert paths(document) == ["a.py"]
    assert reasons(document) == {
        "gone.py": "is known to git but is not there",
        "sub": "is a symbolic link that leaves the folder",
        "sub/b.py": "lies behind a symbolic link",
    }


@needs_git
def test_a_repository_cannot_run_programs(tmp_path: Path) -> None:
    folder = fill(tmp_path / "repo", {"a.py": "x"})
    git(folder, "init")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    git(folder, "config", "core.fsmonitor", str(trap))
    assert paths(read(folder)) == ["a.py"]
    assert not (tmp_path / "sprung").exists()
    git(folder, "status")  # the trap works where nothing guards against it
    assert (tmp_path / "sprung").exists()
