"""HTML (and the XHTML of EPUB chapters) to text, one line per block.

Knows which elements break lines and which hold no text for a reader. Loads nothing that a page refers to.
"""

from __future__ import annotations

import html
import re

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from salalocal.documents import encoding
from salalocal.documents.document import Span
from salalocal.errors import BadDocument


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HIDDEN = _words("head script style template noscript svg iframe annotation annotation-xml")
_BLOCKS = _words(
    "address article aside blockquote body center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu nav ol option p pre section "
    "summary table tbody tfoot thead tr ul caption"
)
_PREFORMATTED = frozenset(("pre", "textarea"))
_CELLS = frozenset(("td", "th"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4"))
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"^\s*<\?xml[^>]+encoding\s*=\s*[\"']([A-Za-z0-9_.:-]{1,40})")
# HTML knows no self-closed <title/>: everything after it would be the title.
_SELF_CLOSED = re.compile(
    r"<(title|script|style|textarea|iframe|noscript|xmp|noembed|noframes|object|template)\b([^<>]*)/>", re.I
)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_MANY_SPACES = re.compile(" {2,}")
_SPACES = re.compile(r"[ \t\n\r\f]+")


def parse_html(data: bytes) -> tuple[tuple[Span, ...], str]:
    """One span of the page's text, and the encoding it was in; `line` counts lines of the extracted text.

    Raises BadDocument if the bytes are not text or hold none.
    """
    page, name = encoding.decode(data, declared_encoding(data))
    text, _ = html_text(page)
    if not text:
        raise BadDocument("holds no text: it may be built by scripts; save the page as PDF or text")
    return (Span(text, line=1),), name


def declared_encoding(data: bytes) -> str | None:
    """The encoding that a page names in itself, if any."""
    head = data[:4096]
    declared = _XML_ENCODING.search(head) or _CHARSET.search(head)
    return declared[1].decode("ascii") if declared else None


def html_text(page: str, *, xhtml: bool = False) -> tuple[str, str | None]:
    """The text of a page, "" if it has none, and its first heading, if any."""
    if xhtml:
        page = _SELF_CLOSED.sub(r"<\1\2></\1>", page)
        page = _CDATA.sub(lambda match: html.escape(match[1]), page)
    try:
        parser = LexborHTMLParser(page)
    except SelectolaxError as error:  # HTML has no syntax errors; what is missing is memory
        raise MemoryError(str(error)) from error
    writer = _Writer()
    title = None if xhtml else parser.css_first("head > title")  # a chapter's repeats the book's
    if title is not None:
        writer.add(title.text(), preformatted=False)
        writer.end_line()
    if parser.root is not None:
        _walk(parser.root, writer)
    return writer.text(), writer.heading


class _Writer:
    """Collects text, with white space as a browser would show it."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line: list[str] = []
        self._is_preformatted = False
        self._heading_start: int | None = None
        self.heading: str | None = None

    def add(self, text: str, *, preformatted: bool) -> None:
        if not preformatted:
            self._line.append(_SPACES.sub(" ", text))
            return
        self._is_preformatted = True
        first, *others = text.split("\n")
        self._line.append(first)
        for other in others:
            self.end_line(keep=True)
            self._is_preformatted = True
            self._line.append(other)

    def end_line(self, *, keep: bool = False) -> None:
        """Ends the line. An empty one is kept only if `keep`, inner spaces only if it is preformatted."""
        line = "".join(self._line).rstrip()
        if not self._is_preformatted:
            line = _MANY_SPACES.sub(" ", line).lstrip(" ")
        self._line, self._is_preformatted = [], False
        if line or keep:
            self._lines.append(line)

    def enter(self, tag: str) -> None:
        if tag in _BLOCKS or tag == "br":
            self.end_line()
        elif tag in _CELLS and self._line:
            self._line.append("\t")
        if tag == "li":
            self._line.append("- ")
        if tag in _HEADINGS and self.heading is None:
            self._heading_start = len(self._lines)

    def leave(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.end_line()
        if tag in _HEADINGS and self._heading_start is not None:
            heading = " ".join(self._lines[self._heading_start :]).strip()
            self.heading = self.heading or heading or None
            self._heading_start = None

    def text(self) -> str:
        self.end_line()
        text = "\n".join(self._lines).strip("\n")
        return text + "\n" if text.strip() else ""


def _walk(root: LexborNode, writer: _Writer) -> None:
    """Depth first without recursion: pages nest thousands deep."""
    preformatted = 0
    node: LexborNode | None = root
    while node is not None:
        tag = node.tag or ""
        if node.is_text_node:
            writer.add(node.text_content or "", preformatted=preformatted > 0)
        elif node.is_element_node and tag not in _HIDDEN:
            writer.enter(tag)
            preformatted += tag in _PREFORMATTED
            if node.first_child is not None:
                node = node.first_child
                continue
            preformatted -= tag in _PREFORMATTED
            writer.leave(tag)
        while node.next is None:
            if node.parent is None or node.parent.mem_id == root.mem_id:
                return
            node = node.parent
            preformatted -= node.tag in _PREFORMATTED
            writer.leave(node.tag or "")
        node = node.next
