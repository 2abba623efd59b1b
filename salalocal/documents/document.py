"""What a read document is: files of spans, each span with its page or line.

Knows no file format and does no input or output.
"""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.errors import InvalidRequest


@dataclass(frozen=True)
class Place:
    """Where a piece of text stands: file, and page or line (both from 1) where the format has them."""

    file: str
    page: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        parts = [self.file]
        if self.page is not None:
            parts.append(f"page {self.page}")
        if self.line is not None:
            parts.append(f"line {self.line}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Span:
    """A stretch of text; `page` and `line` (from 1) are those of its first character.

    A span never crosses a page. Where `line` is set, lines are counted on from it; where it is None the
    format has no lines that a reader could find again (a PDF page).
    """

    text: str
    page: int | None = None
    line: int | None = None

    def place(self, file: str, offset: int) -> Place:
        """The place in `file` of the character at `offset` (0 to len(text)).

        Raises InvalidRequest if `offset` is outside the text.
        """
        if not 0 <= offset <= len(self.text):
            raise InvalidRequest(f"offset {offset:,} is outside a span of {len(self.text):,} characters")
        line = None if self.line is None else self.line + self.text.count("\n", 0, offset)
        return Place(file, self.page, line)


@dataclass(frozen=True)
class SourceFile:
    """One file's text. `path` is relative to the document and uses `/`; spans are in reading order.

    `encoding` names the encoding its bytes were read in, or is None for formats that carry their own.
    """

    path: str
    spans: tuple[Span, ...]
    encoding: str | None = None


@dataclass(frozen=True)
class Skipped:
    """Something that was left out, and why; `path` is relative to the document, a folder's ends in `/`."""

    path: str
    reason: str


@dataclass(frozen=True)
class Document:
    """What one call of `read` found: files in library order, and everything that was left out."""

    name: str
    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()
