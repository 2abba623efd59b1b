"""DOCX to text: body, tables, text boxes and notes, one line per paragraph or table row.

Knows WordprocessingML. Tracked deletions, comments, headers and footers are left out. Runs in the parser
process only.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import docx
from docx.opc.exceptions import PackageNotFoundError
from docx.oxml.parser import parse_xml
from lxml import etree  # type: ignore[import-untyped]

from salalocal.documents.container import open_container
from salalocal.documents.document import Span
from salalocal.documents.limits import Limits
from salalocal.errors import BadDocument

if TYPE_CHECKING:
    from docx.document import Document as WordDocument

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_NOTES = (("/footnotes", "footnote"), ("/endnotes", "endnote"))
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-", f"{_W}ptab": "\t"}


def parse_docx(data: bytes, limits: Limits) -> tuple[Span, ...]:
    """One span of the document's text; `line` counts paragraphs and table rows, notes coming last.

    Raises BadDocument if the file is damaged, needs a password or has no text.
    """
    if data.startswith(_OLE):
        raise BadDocument("needs a password, or is an old .doc file: save it in Word as .docx without a password")
    open_container(data, limits, kind="a Word document").close()
    try:
        document = docx.Document(io.BytesIO(data))
        lines = list(_block_lines(document.element.body))
        for ending, kind in _NOTES:
            lines += _note_lines(document, ending, kind)
    except (PackageNotFoundError, KeyError, ValueError, AttributeError, etree.XMLSyntaxError) as error:
        raise BadDocument(f"is damaged or not a Word document ({error})") from error
    text = "\n".join(lines).strip("\n")
    if not text.strip():
        raise BadDocument("holds no text: it may consist of pictures, and needs OCR")
    return (Span(text + "\n", line=1),)


def _block_lines(parent: etree._Element) -> Iterator[str]:
    """The lines of all paragraphs and tables below `parent`, in order, however they are wrapped."""
    for child in parent:
        if child.tag == f"{_W}p":
            yield from _paragraph_lines(child)
        elif child.tag == f"{_W}tbl":
            yield from _table_lines(child)
        elif child.tag != _FALLBACK:  # the same content again, for old versions of Word
            yield from _block_lines(child)


def _paragraph_lines(paragraph: etree._Element) -> Iterator[str]:
    pieces: list[str] = []
    boxes: list[etree._Element] = []
    _collect(paragraph, pieces, boxes)
    yield from "".join(pieces).rstrip().split("\n")
    for box in boxes:
        yield from _block_lines(box)


def _collect(parent: etree._Element, pieces: list[str], boxes: list[etree._Element]) -> None:
    """The text of a paragraph into `pieces`; text boxes anchored in it into `boxes`."""
    for child in parent:
        if child.tag == f"{_W}t":
            pieces.append(child.text or "")
        elif child.tag in _BREAKS:
            pieces.append(_BREAKS[child.tag])
        elif child.tag in (f"{_W}footnoteReference", f"{_W}endnoteReference"):
            kind = child.tag.removeprefix(_W).removesuffix("Reference")
            pieces.append(f"[{kind} {child.get(f'{_W}id')}]")
        elif child.tag == f"{_W}txbxContent":
            boxes.append(child)
        elif child.tag not in (_FALLBACK, f"{_W}pPr", f"{_W}rPr"):  # properties hold tab stops, not tabs
            _collect(child, pieces, boxes)


def _table_lines(table: etree._Element) -> Iterator[str]:
    """One line per row, cells parted by tabs, a cell's paragraphs by spaces."""
    for row in _children(table, f"{_W}tr"):
        cells = [" ".join(filter(None, _block_lines(cell))).replace("\t", " ") for cell in _children(row, f"{_W}tc")]
        yield "\t".join(cells).rstrip()


def _children(parent: etree._Element, tag: str) -> Iterator[etree._Element]:
    """Children of that tag, also inside content controls and tracked insertions."""
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag in (f"{_W}sdt", f"{_W}sdtContent", f"{_W}ins", f"{_W}customXml"):
            yield from _children(child, tag)


def _note_lines(document: WordDocument, ending: str, kind: str) -> Iterator[str]:
    for relation in document.part.rels.values():
        if relation.is_external or not relation.reltype.endswith(ending):
            continue
        notes = parse_xml(relation.target_part.blob)
        for note in _children(notes, f"{_W}{kind}"):
            if note.get(f"{_W}type") is None:  # typed notes are the separators above notes
                yield f"[{kind} {note.get(f'{_W}id')}] " + " ".join(filter(None, _block_lines(note)))
