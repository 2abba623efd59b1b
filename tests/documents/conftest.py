"""Small real files of every format, made here."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence

import docx
import pytest

PICTURE = "q 100 0 0 100 72 600 cm /Im1 Do Q"


@pytest.fixture
def make_pdf() -> Callable[..., bytes]:
    """Builds a PDF of pages of lines; the line PICTURE draws an image. `encrypted` asks for a password."""
    return _pdf


def _pdf(pages: Sequence[Sequence[str]], *, encrypted: bool = False) -> bytes:
    kids = " ".join(f"{5 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Length 1 >>\nstream\n\x00\nendstream",
    ]
    for index, lines in enumerate(pages):
        texts = " ".join(f"({line}) Tj T*" for line in lines if line != PICTURE)
        content = f"BT /F1 12 Tf 72 720 Td 14 TL {texts} ET {PICTURE if PICTURE in lines else ''}".encode("cp1252")
        resources = "<< /Font << /F1 3 0 R >> /XObject << /Im1 4 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {6 + 2 * index} 0 R "
            f"/Resources {resources} >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R"
    if encrypted:  # no password yields these 32 bytes
        key = "41" * 32
        trailer += f" /ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -44 >>"
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(f"trailer << {trailer} >>\nstartxref\n{table}\n%%EOF".encode())
    return out.getvalue()


@pytest.fixture
def make_zip() -> Callable[[Mapping[str, bytes | str]], bytes]:
    """Builds a deflated zip of members by name."""
    return _zip


def _zip(members: Mapping[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def make_epub() -> Callable[..., bytes]:
    """Builds an EPUB of chapters (name -> XHTML body); `extra` adds or replaces members."""
    return _epub


def _epub(chapters: Mapping[str, str], extra: Mapping[str, str] | None = None) -> bytes:
    items = "".join(
        f'<item id="c{i}" href="Text/{name.replace(" ", "%20")}" media-type="application/xhtml+xml"/>'
        for i, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OEBPS/book.opf": '<?xml version="1.0"?><opf:package xmlns:opf="http://www.idpf.org/2007/opf"><opf:manifest>'
        f"{items}</opf:manifest><opf:spine>{spine}</opf:spine></opf:package>".replace("<item ", "<opf:item ").replace(
            "<itemref ", "<opf:itemref "
        ),
    }
    for name, body in chapters.items():
        members[f"OEBPS/Text/{name}"] = (
            '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
            f"<body>{body}</body></html>"
        )
    return _zip(members | dict(extra or {}))


@pytest.fixture
def make_docx() -> Callable[[Sequence[str]], bytes]:
    """Builds a DOCX of paragraphs, with a table of two rows behind the first."""
    return _docx


def _docx(paragraphs: Sequence[str]) -> bytes:
    document = docx.Document()
    for index, text in enumerate(paragraphs):
        document.add_paragraph(text)
        if index == 0:
            table = document.add_table(rows=2, cols=2)
            for row in range(2):
                for column in range(2):
                    table.cell(row, column).text = f"cell {row}{column}"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()
