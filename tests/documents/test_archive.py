"""Zip archives: streamed, screened like folders, and every known way of attacking with one."""

from __future__ import annotations

import copy
import io
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from salalocal.documents import Document, Place, read
from salalocal.documents.limits import DEFAULT_LIMITS
from salalocal.documents.reader import read_within
from salalocal.errors import BadDocument

MakeZip = Callable[..., bytes]


def put(folder: Path, data: bytes) -> Path:
    path = folder / "a.zip"
    path.write_bytes(data)
    return path


def paths(document: Document) -> list[str]:
    return [file.path for file in document.files]


def reasons(document: Document) -> dict[str, str]:
    return {skipped.path: skipped.reason for skipped in document.skipped}


def encrypted(data: bytes, name: bytes) -> bytes:
    """`data` with the encryption flag set for the member `name`, in both its headers."""
    out = bytearray(data)
    for signature, flags, name_at in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        at = data.find(signature)
        while at >= 0:
            if data[at + name_at :].startswith(name):
                out[at + flags] |= 1
            at = data.find(signature, at + 4)
    return bytes(out)


def test_members_are_read_and_nothing_is_written(
    tmp_path: Path, make_zip: MakeZip, make_pdf: Callable[..., bytes], make_epub: Callable[..., bytes]
) -> None:
    members = {
        "src/b.py": "two\nlines",
        "src/a.py": "x",
        "book.pdf": make_pdf([["page"]]),
        "b.epub": make_epub({"1.xhtml": "<h1>Start</h1>"}),
        "windows\\c.txt": "x",
        ".gitignore": "*.log\nout/\n",
        "x.log": "x",
        "out/one.txt": "x",
        "out/two.txt": "x",
        ".git/config": "x",
        "node_modules/m/index.js": "x",
        ".env": "KEY=1",
        "inner.zip": make_zip({"a.txt": "x"}),
        "pic.png": "x",
    }
    path = put(tmp_path, make_zip(members))
    calls: list[tuple[int, int]] = []
    document = read(path, on_progress=lambda done, total: calls.append((done, total)))
    assert paths(document) == [".gitignore", "b.epub/1 Start", "book.pdf", "src/a.py", "src/b.py", "windows/c.txt"]
    found = reasons(document)
    assert set(found) == {"x.log", "out/", "node_modules/", ".env", "inner.zip", "pic.png"}
    assert found["out/"] == "is ignored by .gitignore"
    assert "is an archive inside another document" in found["inner.zip"]
    source = document.files[4]
    assert source.spans[0].place(source.path, 5) == Place("src/b.py", None, 2)
    assert os.listdir(tmp_path) == ["a.zip"]
    assert calls[0] == (0, 7)
    assert calls[-1] == (7, 7)


def test_names_that_point_outside(tmp_path: Path, make_zip: MakeZip) -> None:
    names = ["../up.txt", "/abs.txt", "a/../../up.txt", "..\\up.txt", "C:\\x.txt"]
    document = read(put(tmp_path, make_zip(dict.fromkeys([*names, "good.txt"], "x"))))
    assert paths(document) == ["good.txt"]
    assert reasons(document) == dict.fromkeys(names, "has a name that points outside the archive")


def test_links_and_duplicates(tmp_path: Path, make_zip: MakeZip) -> None:
    out = io.BytesIO(make_zip({"a.txt": "first"}))
    with zipfile.ZipFile(out, "a") as archive:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "second")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    document = read(put(tmp_path, out.getvalue()))
    assert document.files[0].spans[0].text == "first"
    assert reasons(document) == {"a.txt": "is in the archive twice; the first is read", "link": "is a symbolic link"}


def test_encrypted_members(tmp_path: Path, make_zip: MakeZip) -> None:
    data = make_zip({"locked.txt": "x", "open.txt": "y"})
    document = read(put(tmp_path, encrypted(data, b"locked.txt")))
    assert paths(document) == ["open.txt"]
    assert "is encrypted" in reasons(document)["locked.txt"]
    with pytest.raises(BadDocument, match=r"a\.zip needs a password"):
        read(put(tmp_path, encrypted(make_zip({"locked.txt": "x"}), b"locked.txt")))


def test_a_damaged_member_is_left_out(tmp_path: Path, make_zip: MakeZip) -> None:
    text = random.Random(0).randbytes(400).hex()
    data = bytearray(make_zip({"bad.txt": text, "good.txt": "x"}))
    data[60:70] = bytes(10)
    document = read(put(tmp_path, bytes(data)))
    assert paths(document) == ["good.txt"]
    assert "is damaged inside its archive" in reasons(document)["bad.txt"]


def test_a_bomb_is_refused(tmp_path: Path, make_zip: MakeZip) -> None:
    with pytest.raises(
        BadDocument, match=r"a\.zip unpacks to [\d,]+ times its size, as zip bombs do; the limit is 200"
    ):
        read(put(tmp_path, make_zip({"zeros.txt": b"0" * (50 << 20)})))


def test_a_bomb_among_honest_files_is_left_out(tmp_path: Path, make_zip: MakeZip) -> None:
    noise = random.Random(0).randbytes(200_000).hex()
    document = read(put(tmp_path, make_zip({"zeros.txt": b"0" * (3 << 20), "noise.txt": noise})))
    assert paths(document) == ["noise.txt"]
    assert reasons(document) == {"zeros.txt": "is packed more than 200:1, as zip bombs are"}


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", random.Random(0).randbytes(3000).hex())
        for index in range(5):
            again = copy.copy(archive.filelist[0])
            again.filename = f"{index}.txt"
            archive.filelist.append(again)
    with pytest.raises(BadDocument, match="files that overlap inside it"):
        read(put(tmp_path, out.getvalue()))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"archive_files": 2}, r"a\.zip holds 3 files; an archive may hold 2"),
        ({"total_bytes": 20}, r"a\.zip unpacks to 30 bytes; an archive may hold 20 bytes"),
    ],
)
def test_archives_past_a_limit_are_refused(
    tmp_path: Path, make_zip: MakeZip, limits: dict[str, int], message: str
) -> None:
    path = put(tmp_path, make_zip(dict.fromkeys(("a.txt", "b.txt", "c.txt"), "0123456789")))
    with pytest.raises(BadDocument, match=message):
        read_within(path, replace(DEFAULT_LIMITS, **limits))


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_a_vast_directory_is_refused_before_it_is_read(tmp_path: Path, comment: bytes) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index in range(400):
            archive.writestr(f"{index}.txt", "")
        archive.comment = comment
    with pytest.raises(BadDocument, match="holds far too many files; an archive may hold 20"):
        read_within(put(tmp_path, out.getvalue()), replace(DEFAULT_LIMITS, archive_files=20))


def test_other_packings_and_names_too_long(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("lzma.txt", "x", zipfile.ZIP_LZMA)
        archive.writestr("bzip2.txt", "x", zipfile.ZIP_BZIP2)
        archive.writestr("x" * 300, "x")
    document = read(put(tmp_path, out.getvalue()))
    assert paths(document) == ["bzip2.txt"]
    assert "is packed in a way that is not read" in reasons(document)["lzma.txt"]
    assert "too long" in reasons(document)["x" * 300]


def test_oversized_members_are_left_out(tmp_path: Path, make_zip: MakeZip) -> None:
    path = put(tmp_path, make_zip({"a.txt": "x" * 2000, "b.txt": "x"}))
    document = read_within(path, replace(DEFAULT_LIMITS, folder_text_bytes=1000))
    assert reasons(document) == {"a.txt": "is too large (2.0 KB; the limit is 1,000 bytes)"}


def test_an_empty_archive(tmp_path: Path, make_zip: MakeZip) -> None:
    with pytest.raises(BadDocument, match=r"a\.zip holds no files"):
        read(put(tmp_path, make_zip({})))


@pytest.mark.parametrize("name", ["a.docx", "a.epub"])
def test_bombs_in_other_clothes(tmp_path: Path, make_zip: MakeZip, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(make_zip({"word/document.xml": b"0" * (50 << 20)}))
    with pytest.raises(BadDocument, match=f"{name} unpacks to .* times its size"):
        read(path)
