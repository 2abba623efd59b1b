"""EPUB to one source file per chapter, in the order of the book's spine.

Knows the container, the package file and the spine; chapters go through the HTML reader. Nothing is
unpacked to disk, no entity is expanded and nothing is fetched.
"""

from __future__ import annotations

import posixpath
import zipfile
from urllib.parse import unquote

from salalocal.documents import encoding
from salalocal.documents.container import open_container, read_member
from salalocal.documents.document import Skipped, SourceFile, Span
from salalocal.documents.html import declared_encoding, html_text
from salalocal.documents.limits import Limits
from salalocal.documents.paths import shown
from salalocal.documents.xml_elements import Element, read_elements
from salalocal.errors import BadDocument

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGES = frozenset(("application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml"))
_HEADING_CHARACTERS = 80


def parse_epub(path: str, data: bytes, limits: Limits) -> tuple[tuple[SourceFile, ...], tuple[Skipped, ...]]:
    """The chapters of a book: each a source file named `<path>/<number> <first heading>`.

    `line` counts the lines of the chapter's extracted text. Chapters without text (cover, plates) and
    unreadable ones are listed as skipped. Raises BadDocument if the book is damaged or copy-protected.
    """
    with open_container(data, limits, kind="an EPUB book") as archive:
        package = _package_path(archive, limits)
        chapters, left_out = _spine(archive, package, limits)
        if protected := _encrypted(archive, limits) & set(chapters):
            raise BadDocument(f"is copy-protected (DRM): {shown(min(protected))} is encrypted")
        files: list[SourceFile] = []
        skipped = [Skipped(f"{path}/{shown(name)}", reason) for name, reason in left_out.items()]
        for number, member in enumerate(chapters, 1):
            try:
                data = read_member(archive, archive.getinfo(member), limits)
                page, name = encoding.decode(data, declared_encoding(data))
            except BadDocument as error:
                skipped.append(Skipped(f"{path}/{shown(member)}", str(error)))
                continue
            text, heading = html_text(page, xhtml=True)
            if text:
                files.append(SourceFile(_chapter_path(path, number, heading, member), (Span(text, line=1),), name))
            else:
                skipped.append(Skipped(f"{path}/{shown(member)}", "holds no text"))
    if not files:
        raise BadDocument("holds no text in its chapters: it may consist of pictures, and needs OCR")
    return tuple(files), tuple(skipped)


def _chapter_path(path: str, number: int, heading: str | None, member: str) -> str:
    title = heading or posixpath.basename(member)
    if len(title) > _HEADING_CHARACTERS:
        title = title[: _HEADING_CHARACTERS - 1].rstrip() + "…"
    return f"{path}/{number} {shown(' '.join(title.split())).replace('/', '∕')}"


def _elements(archive: zipfile.ZipFile, name: str, limits: Limits) -> list[Element]:
    try:
        member = archive.getinfo(name)
    except KeyError as error:
        raise BadDocument(f"is not a readable EPUB: {shown(name)} is missing") from error
    return read_elements(shown(name), read_member(archive, member, limits))


def _package_path(archive: zipfile.ZipFile, limits: Limits) -> str:
    for element in _elements(archive, _CONTAINER, limits):
        if element.name == "rootfile" and element.attributes.get("full-path"):
            return element.attributes["full-path"]
    raise BadDocument(f"is not a readable EPUB: {_CONTAINER} names no package file")


def _spine(archive: zipfile.ZipFile, package: str, limits: Limits) -> tuple[list[str], dict[str, str]]:
    """Chapters in reading order, each once, and what else the spine names with the reason it is left out."""
    elements = _elements(archive, package, limits)
    items = {item.attributes.get("id", ""): item.attributes for item in elements if item.name == "item"}
    present = set(archive.namelist())
    chapters: dict[str, None] = {}
    left_out: dict[str, str] = {}
    for reference in (item for item in elements if item.name == "itemref"):
        identifier = reference.attributes.get("idref", "")
        attributes = items.get(identifier, {})
        href = unquote(attributes.get("href", "")).partition("#")[0]
        member = posixpath.normpath(posixpath.join(posixpath.dirname(package), href))
        if member not in present:
            left_out[href or identifier] = "is named in the book's spine but is not in the book"
        elif attributes.get("media-type", "application/xhtml+xml") in _PAGES:
            chapters[member] = None
        else:
            left_out[member] = "is no page of text"
    if not chapters:
        raise BadDocument("is not a readable EPUB: its spine names no chapter that is in it")
    return list(chapters), left_out


def _encrypted(archive: zipfile.ZipFile, limits: Limits) -> set[str]:
    """Members that are encrypted; publishers also scramble fonts this way, which is no hindrance."""
    if _ENCRYPTION not in archive.namelist():
        return set()
    elements = _elements(archive, _ENCRYPTION, limits)
    return {unquote(item.attributes.get("URI", "")) for item in elements if item.name == "CipherReference"}
