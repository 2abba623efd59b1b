"""Which reader a file goes to, by its name and first bytes.

Knows the kinds of files and what to say about those that are not read. Opens no files.
"""

from __future__ import annotations

from enum import Enum
from pathlib import PurePosixPath

from salalocal.documents import encoding
from salalocal.documents.document import Skipped, SourceFile, Span
from salalocal.documents.screen import BINARY_SUFFIXES
from salalocal.errors import BadDocument, UnsupportedFormat


class Kind(Enum):
    """How a file is read. All but TEXT and ZIP are parsed in a process of their own."""

    TEXT = "text"
    PDF = "pdf"
    EPUB = "epub"
    DOCX = "docx"
    HTML = "html"
    ZIP = "zip"


_KINDS = {
    ".pdf": Kind.PDF,
    ".epub": Kind.EPUB,
    ".docx": Kind.DOCX,
    ".html": Kind.HTML,
    ".htm": Kind.HTML,
    ".xhtml": Kind.HTML,
    ".zip": Kind.ZIP,
}
_ADVICE = {
    **dict.fromkeys((".doc", ".odt", ".rtf", ".pages", ".wpd", ".docm"), "save it as .docx, .pdf or .txt"),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".xls", ".xlsx", ".ods", ".numbers"), "save it as .pdf or .txt"),
    **dict.fromkeys((".mobi", ".azw", ".azw3", ".kfx", ".fb2", ".lit"), "convert it to .epub"),
    **dict.fromkeys((".djvu", ".djv", ".ps", ".eps", ".chm", ".xps"), "convert it to .pdf"),
}
_READ = "text, source code, .pdf, .epub, .docx, .html, .zip and folders are read"

Parsed = tuple[tuple[SourceFile, ...], tuple[Skipped, ...]]


def kind_of(path: str, head: bytes) -> Kind:
    """The kind of the file `path` that starts with `head`.

    Raises UnsupportedFormat, with the way out where there is one, for a type that is not read.
    """
    suffix = PurePosixPath(path.lower()).suffix
    if head.startswith(b"%PDF-"):
        return Kind.PDF
    if suffix in _ADVICE:
        raise UnsupportedFormat(f"is of a type that is not read ({suffix}): {_ADVICE[suffix]}")
    if suffix in BINARY_SUFFIXES:
        raise UnsupportedFormat(f"is of a type that is not read ({suffix}): {_READ}")
    return _KINDS.get(suffix, Kind.TEXT)


def parse_text(path: str, data: bytes) -> Parsed:
    """A text file as one span that starts at line 1. Raises BadDocument if `data` is not text, or is empty."""
    text, name = encoding.decode(data)
    if not text.strip():
        raise BadDocument("is empty" if not text else "holds nothing but white space")
    return (SourceFile(path, (Span(text, line=1),), name),), ()
