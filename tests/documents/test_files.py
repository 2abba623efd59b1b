"""One file named directly: every format, its places, and every way it can be bad."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from salalocal.documents import Document, Place, Skipped, read
from salalocal.documents.limits import DEFAULT_LIMITS
from salalocal.documents.reader import read_within
from salalocal.errors import BadDocument, InvalidRequest, UnsupportedFormat

PICTURE = "q 100 0 0 100 72 600 cm /Im1 Do Q"


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def only_text(document: Document) -> str:
    (file,) = document.files
    return "".join(span.text for span in file.spans)


def refusal(path: Path | str) -> str:
    with pytest.raises(BadDocument) as caught:
        read(path)
    return str(caught.value)


def test_text_keeps_its_lines(tmp_path: Path) -> None:
    document = read(write(tmp_path, "notes.md", "# One\r\ntwo\rthree\n"))
    (file,) = document.files
    (span,) = file.spans
    assert (document.name, file.path, file.encoding) == ("notes.md", "notes.md", "utf-8")
    assert span.text == "# One\ntwo\nthree\n"
    assert span.place(file.path, span.text.index("three")) == Place("notes.md", None, 3)
    assert str(span.place(file.path, 0)) == "notes.md, line 1"
    with pytest.raises(InvalidRequest, match="offset 99"):
        span.place(file.path, 99)


def test_progress_is_called_before_and_after(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    read(write(tmp_path, "a.txt", "text"), on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        pytest.param("plain café\n", "utf-8-sig", "utf-8", id="utf8-mark"),
        pytest.param("wide café\n", "utf-16", "utf-16-le", id="utf16-mark"),
        pytest.param("wide café 漢字\n", "utf-32", "utf-32-le", id="utf32-mark"),
        pytest.param("wide text without a mark\n" * 3, "utf-16-le", "utf-16-le", id="utf16-le"),
        pytest.param("wide text without a mark\n" * 3, "utf-16-be", "utf-16-be", id="utf16-be"),
        pytest.param("wide text without a mark\n" * 3, "utf-32-be", "utf-32-be", id="utf32-be"),
        pytest.param("Un café.", "latin-1", "cp1252", id="latin1-short"),
        pytest.param("L’été dernier, nous étions à la plage « déjà » fatigués.", "cp1252", "cp1252", id="french"),
        pytest.param("Это короткий русский текст для проверки.\n" * 4, "cp1251", "cp1251", id="russian"),
        pytest.param("Příliš žluťoučký kůň úpěl ďábelské ódy. To je český text.", "cp1250", "cp1250", id="czech"),
        pytest.param("这是一个用于测试的中文文本。\n", "gbk", "gb18030", id="chinese"),
        pytest.param("これは日本語のテキストです。エンコーディング。\n", "shift-jis", "cp932", id="japanese"),
    ],
)
def test_encodings(tmp_path: Path, text: str, encoding: str, name: str) -> None:
    document = read(write(tmp_path, "a.txt", text.encode(encoding)))
    assert only_text(document) == text
    assert document.files[0].encoding == name


def test_a_long_file_in_an_old_encoding(tmp_path: Path) -> None:
    text = "这是一个用于测试的中文文本。行\n" * 50_000
    document = read(write(tmp_path, "a.txt", text.encode("gbk")))
    assert only_text(document) == text


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("utf-16", "utf-8"), ("iso-8859-1", "utf-8"), ("windows-1252", "cp1252"), ("iso-8859-1", "cp1252")],
)
def test_declared_encodings_are_not_trusted_blindly(tmp_path: Path, declared: str, encoding: str) -> None:
    page = f"<meta charset={declared}><p>“naïve” café"
    document = read(write(tmp_path, "a.html", page.encode(encoding)))
    assert only_text(document) == "“naïve” café\n"
    assert document.files[0].encoding == encoding


def test_a_declared_transformation_is_not_run(tmp_path: Path) -> None:
    page = b"<meta charset=unicode_escape><p>caf\xe9 \\x41 and some more plain words of text"
    assert "\\x41" in only_text(read(write(tmp_path, "a.html", page)))


def test_damaged_utf8_is_refused_not_misread(tmp_path: Path) -> None:
    data = "naïve café brûlée über straße\n".encode() * 20 + b"\xe9"
    message = refusal(write(tmp_path, "a.txt", data))
    assert "a.txt is UTF-8 but damaged: 1 bad byte sequence, the first at byte" in message


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        pytest.param("a.txt", b"", "a.txt is empty", id="empty"),
        pytest.param("a.txt", b" \n\t\n", "nothing but white space", id="blank"),
        pytest.param("a.txt", b"\x7fELF\x02\x01\x00\x00" + bytes(range(256)) * 20, "is binary", id="binary-as-txt"),
        pytest.param("a.txt", b"\x01\x02\x03\x04" * 100, "is binary", id="controls"),
        pytest.param("a.txt", b"\xff\xfe\x00\xd8x", "starts with the mark of UTF-16-LE", id="broken-utf16"),
        pytest.param("a.txt", b"text\x00text" * 10, "is binary", id="nul"),
        pytest.param("a.pdf", b"%PDF-1.4 nothing more", "is damaged or is not a PDF", id="pdf-damaged"),
        pytest.param("a.pdf", b"not at all", "is damaged or is not a PDF", id="pdf-other"),
        pytest.param("a.docx", b"not at all", "is damaged or not a Word document", id="docx-other"),
        pytest.param("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "needs a password", id="docx-locked"),
        pytest.param("a.epub", b"PK\x03\x04 cut off", "is damaged or not an EPUB book", id="epub-cut"),
        pytest.param("a.zip", b"PK\x03\x04 cut off", "is damaged or not a zip archive", id="zip-cut"),
        pytest.param("a.html", b"<script>build()</script>", "holds no text", id="html-scripts"),
        pytest.param("a.html", b"\x00\x01\x02" * 50, "is binary", id="html-binary"),
    ],
)
def test_bad_files_say_why(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    message = refusal(write(tmp_path, name, data))
    assert message.startswith(name + " ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "way_out"), [("a.mobi", ".epub"), ("a.pptx", ".pdf"), ("a.png", "source code")])
def test_unsupported_types_name_the_way_out(tmp_path: Path, name: str, way_out: str) -> None:
    with pytest.raises(UnsupportedFormat, match=f"{name} is of a type that is not read.*{way_out}"):
        read(write(tmp_path, name, b"x"))


def test_missing_paths(tmp_path: Path) -> None:
    assert "there is no such file or folder" in refusal(tmp_path / "nowhere.txt")
    assert "there is no such file or folder" in refusal(write(tmp_path, "a.txt", "x") / "b.txt")
    assert "no file or folder was named" in refusal("")
    assert "cannot be opened" in refusal("a\0b")


def test_a_link_to_itself_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert "(Too many levels of symbolic links)" in refusal(tmp_path / "loop")


def test_what_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.txt", "x")

    def forbid(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)
    assert refusal(path) == "a.txt cannot be opened (Permission denied)"


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is a device, pipe or socket" in refusal(tmp_path / "pipe.txt")
    assert "is a device, pipe or socket" in refusal("/dev/zero")


def test_a_link_named_directly_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(write(tmp_path, "a.txt", "text"))
    assert only_text(read(tmp_path / "link.txt")) == "text"


def test_a_secret_named_directly_is_read(tmp_path: Path) -> None:
    assert only_text(read(write(tmp_path, ".env", "KEY=1"))) == "KEY=1"


def test_too_large_files_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"x" * 3000)
    with pytest.raises(BadDocument, match=r"a.txt is too large \(2.9 KB; the limit is 1,000 bytes\)"):
        read_within(path, replace(DEFAULT_LIMITS, text_bytes=1000))


def test_pdf_has_pages(tmp_path: Path, make_pdf: Callable[..., bytes]) -> None:
    pages = [["The first exam-", "ple ends.", "2019-", "2020 Caf\xe9"], [], ["The third page."], [PICTURE], [PICTURE]]
    document = read(write(tmp_path, "book.pdf", make_pdf(pages)))
    (file,) = document.files
    assert [(span.page, span.line) for span in file.spans] == [(1, None), (3, None)]
    assert file.spans[0].text.startswith("The first example ends.\n2019-")
    assert "Café" in file.spans[0].text
    assert str(file.spans[1].place(file.path, 4)) == "book.pdf, page 3"
    assert document.skipped == (Skipped("book.pdf", "pages 4-5: pictures and no text, needs OCR"),)


def test_pdf_under_another_name(tmp_path: Path, make_pdf: Callable[..., bytes]) -> None:
    document = read(write(tmp_path, "paper.txt", make_pdf([["Words."]])))
    assert document.files[0].spans[0].page == 1


def test_pdf_that_needs_a_password(tmp_path: Path, make_pdf: Callable[..., bytes]) -> None:
    assert "a.pdf needs a password" in refusal(write(tmp_path, "a.pdf", make_pdf([["x"]], encrypted=True)))


def test_pdf_without_text_needs_ocr(tmp_path: Path, make_pdf: Callable[..., bytes]) -> None:
    message = refusal(write(tmp_path, "a.pdf", make_pdf([[PICTURE], []])))
    assert "holds no text in its 2 pages" in message
    assert "holds no text in its 1 page:" in refusal(write(tmp_path, "b.pdf", make_pdf([[PICTURE]])))
    assert "needs OCR" in message


def test_epub_has_chapters(tmp_path: Path, make_epub: Callable[..., bytes]) -> None:
    book = make_epub(
        {
            "one.xhtml": "<h1>Down the\n Rabbit-Hole</h1><p>Alice was <i>very</i> tired.</p><script src='x'/>"
            "<p>Caf&eacute;</p>",
            "cover.xhtml": "<img src='http://example.invalid/c.png'/>",
            "two three.xhtml": "<p>No heading <![CDATA[a < b]]></p>",
        }
    )
    document = read(write(tmp_path, "alice.epub", book))
    assert [file.path for file in document.files] == [
        "alice.epub/1 Down the Rabbit-Hole",
        "alice.epub/3 two three.xhtml",
    ]
    first, second = (file.spans[0] for file in document.files)
    assert first.text == "Down the Rabbit-Hole\nAlice was very tired.\nCafé\n"
    assert second.text == "No heading a < b\n"
    assert str(first.place(document.files[0].path, first.text.index("Alice"))) == (
        "alice.epub/1 Down the Rabbit-Hole, line 2"
    )
    assert document.skipped == (Skipped("alice.epub/OEBPS/Text/cover.xhtml", "holds no text"),)


def test_epub_that_is_copy_protected(tmp_path: Path, make_epub: Callable[..., bytes]) -> None:
    encryption = '<encryption><CipherReference URI="OEBPS/Text/one.xhtml"/></encryption>'
    book = make_epub({"one.xhtml": "<p>x</p>"}, {"META-INF/encryption.xml": encryption})
    assert "is copy-protected (DRM)" in refusal(write(tmp_path, "a.epub", book))


def test_epub_declaring_entities_is_refused(tmp_path: Path, make_epub: Callable[..., bytes]) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><container><rootfile full-path="&b;"/></container>'
    book = make_epub({"one.xhtml": "<p>x</p>"}, {"META-INF/container.xml": laughs})
    assert "META-INF/container.xml declares XML entities" in refusal(write(tmp_path, "a.epub", book))


def test_epub_chapter_outside_the_book(tmp_path: Path, make_epub: Callable[..., bytes]) -> None:
    opf = (
        '<package><item id="a" href="../../../etc/passwd" media-type="text/html"/><item id="b" href="Text/one.xhtml"/>'
        '<itemref idref="a"/><itemref idref="b"/></package>'
    )
    document = read(write(tmp_path, "a.epub", make_epub({"one.xhtml": "<p>x</p>"}, {"OEBPS/book.opf": opf})))
    assert [skipped.path for skipped in document.skipped] == ["a.epub/../../../etc/passwd"]
    assert only_text(document) == "x\n"


def test_docx_has_paragraphs_and_tables(tmp_path: Path, make_docx: Callable[..., bytes]) -> None:
    document = read(write(tmp_path, "a.docx", make_docx(["First", "Tab\there", ""])))
    (span,) = document.files[0].spans
    assert span.text == "First\ncell 00\tcell 01\ncell 10\tcell 11\nTab\there\n"
    assert span.place("a.docx", span.text.index("Tab")).line == 4


def test_docx_insertions_controls_boxes_and_notes(tmp_path: Path, make_docx: Callable[..., bytes]) -> None:
    path = write(tmp_path, "a.docx", make_docx(["MARK"]))
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    wrapped = (
        "<w:ins w:id='1' w:author='x'><w:r><w:t>inserted</w:t></w:r></w:ins>"
        "<w:del w:id='2' w:author='x'><w:r><w:delText>deleted</w:delText></w:r></w:del>"
        "<w:sdt><w:sdtContent><w:r><w:t> controlled</w:t><w:footnoteReference w:id='7'/></w:r></w:sdtContent></w:sdt>"
    )
    notes = (
        f"<w:footnotes {word}><w:footnote w:id='7'><w:p><w:r><w:t>the note</w:t></w:r></w:p></w:footnote></w:footnotes>"
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["word/document.xml"] = members["word/document.xml"].replace(b"<w:r><w:t>MARK</w:t></w:r>", wrapped.encode())
    members["word/footnotes.xml"] = notes.encode()
    members["[Content_Types].xml"] = members["[Content_Types].xml"].replace(
        b"</Types>", b'<Override PartName="/word/footnotes.xml" ContentType="application/xml"/></Types>'
    )
    relation = (
        b'<Relationship Id="rId99" Target="footnotes.xml" '
        b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"/></Relationships>'
    )
    rels = "word/_rels/document.xml.rels"
    members[rels] = members[rels].replace(b"</Relationships>", relation)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    lines = only_text(read(path)).splitlines()
    assert lines[0] == "inserted controlled[footnote 7]"
    assert lines[-1] == "[footnote 7] the note"


def test_html_shows_what_a_reader_sees(tmp_path: Path) -> None:
    page = (
        "<html><head><meta charset='iso-8859-15'><title>T &amp; x</title><style>p{}</style></head><body><!-- no -->"
        "<p>One\n  <b>line</b> \u20ac</p><script>no</script><ul><li>item</ul><pre>  a\n    b</pre>x<br>y"
        "<table><tr><td>1<td>2</table></body>"
    )
    document = read(write(tmp_path, "a.html", page.encode("iso-8859-15")))
    assert only_text(document) == "T & x\nOne line €\n- item\n  a\n    b\nx\ny\n1\t2\n"
    assert document.files[0].encoding == "iso8859-15"
