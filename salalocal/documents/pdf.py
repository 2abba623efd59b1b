"""PDF to one span per page, through PDFium.

Knows pages and text layers; does no character recognition. PDFium is not thread-safe: this module runs in
the parser process only, one file at a time.
"""

from __future__ import annotations

import re

import pypdfium2 as pdfium  # type: ignore[import-untyped]
from pypdfium2 import raw

from salalocal.documents.document import Skipped, SourceFile, Span
from salalocal.errors import BadDocument

# PDFium writes this where a line ended in a hyphen that divides a word, and joins the two lines.
_HYPHEN = re.compile("(.?)[\x02\ufffe](.?)", re.DOTALL)
_LINE_END = re.compile("\r\n?")


def parse_pdf(path: str, data: bytes) -> tuple[tuple[SourceFile, ...], tuple[Skipped, ...]]:
    """The text of each page that has any; pages that hold pictures and no text are listed as skipped.

    Raises BadDocument if the file is damaged, needs a password or has no text at all.
    """
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code == raw.FPDF_ERR_PASSWORD:
            raise BadDocument("needs a password: save a copy without one and read that") from error
        if error.err_code == raw.FPDF_ERR_SECURITY:
            raise BadDocument("is protected in a way that cannot be read: save a copy without it") from error
        raise BadDocument("is damaged or is not a PDF") from error
    spans: list[Span] = []
    pictures: list[int] = []
    damaged: list[int] = []
    with document:
        page_count = len(document)
        for number in range(1, page_count + 1):
            try:
                text, has_pictures = _read_page(document, number - 1)
            except pdfium.PdfiumError:
                damaged.append(number)
                continue
            if text.strip():
                spans.append(Span(text.rstrip() + "\n", page=number))
            elif has_pictures:
                pictures.append(number)
    if not spans:
        raise BadDocument(_no_text(page_count, damaged))
    skipped = []
    if pictures:
        skipped.append(Skipped(path, f"{_pages(pictures)}: pictures and no text, needs OCR"))
    if damaged:
        skipped.append(Skipped(path, f"{_pages(damaged)}: damaged"))
    return (SourceFile(path, tuple(spans)),), tuple(skipped)


def _read_page(document: pdfium.PdfDocument, index: int) -> tuple[str, bool]:
    """The text of a page, and whether it shows anything that is not text."""
    page = document[index]
    try:
        text_page = page.get_textpage()
        try:
            # "replace": a lone surrogate must not vanish, nor reach a tokenizer.
            text = text_page.get_text_bounded(errors="replace")
        finally:
            text_page.close()
        has_pictures = not text.strip() and any(
            item.type != raw.FPDF_PAGEOBJ_TEXT for item in page.get_objects(max_depth=3)
        )
    finally:
        page.close()
    return clean_text(text), has_pictures


def clean_text(text: str) -> str:
    """PDFium's text with `\\n` line ends, words that a line end divided put together, and no NULs."""
    text = _LINE_END.sub("\n", text).replace("\0", "\ufffd")
    return _HYPHEN.sub(_join, text)


def _join(match: re.Match[str]) -> str:
    divided_word = match[1].isalpha() and match[2].islower()
    return f"{match[1]}{match[2]}" if divided_word else f"{match[1]}-{match[2]}"


def _no_text(page_count: int, damaged: list[int]) -> str:
    if len(damaged) == page_count:
        return "is damaged: none of its pages can be read"
    pages = "page" if page_count == 1 else "pages"
    return f"holds no text in its {page_count:,} {pages}: it seems to be scanned, and needs OCR before it is read"


def _pages(numbers: list[int]) -> str:
    """`page 3`, or `pages 3, 7-9`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
    return f"page{'s' * (len(numbers) > 1)} {text}"
