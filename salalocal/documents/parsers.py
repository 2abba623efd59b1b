"""The readers of PDF, EPUB, DOCX and HTML behind one call; loaded in the parser process only.

Knows which library reads what, and cleans up after all of them.
"""

from __future__ import annotations

from dataclasses import replace

from salalocal.documents.document import SourceFile, Span
from salalocal.documents.docx import parse_docx
from salalocal.documents.epub import parse_epub
from salalocal.documents.formats import Kind, Parsed
from salalocal.documents.html import parse_html
from salalocal.documents.limits import Limits, size_text
from salalocal.documents.pdf import parse_pdf
from salalocal.errors import BadDocument


def parse(kind: Kind, path: str, data: bytes, limits: Limits) -> Parsed:
    """The files and omissions in `data`, a file of `kind` that is shown as `path`.

    Raises BadDocument if it cannot be read or its text exceeds `limits.text_bytes`.
    """
    files, skipped = _parse(kind, path, data, limits)
    clean = tuple(replace(file, spans=tuple(_clean(span) for span in file.spans)) for file in files)
    size_bytes = sum(len(span.text.encode()) for file in clean for span in file.spans)
    if size_bytes > limits.text_bytes:
        raise BadDocument(
            f"holds {size_text(size_bytes)} of text; a file may hold {size_text(limits.text_bytes)}: divide it"
        )
    return clean, skipped


def _parse(kind: Kind, path: str, data: bytes, limits: Limits) -> Parsed:
    if kind is Kind.PDF:
        return parse_pdf(path, data)
    if kind is Kind.EPUB:
        return parse_epub(path, data, limits)
    if kind is Kind.DOCX:
        return (SourceFile(path, parse_docx(data, limits)),), ()
    spans, encoding = parse_html(data)
    return (SourceFile(path, spans, encoding),), ()


def _clean(span: Span) -> Span:
    """`span` without lone surrogates, which no tokenizer takes."""
    if span.text.isascii():
        return span
    text = span.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return replace(span, text=text)
