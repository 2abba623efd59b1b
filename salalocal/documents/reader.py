"""`read`: a path of any kind to a document, every omission with its reason.

Knows which lister and which parser a path goes to, and turns reasons into errors or omissions. Knows no
format itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from salalocal.documents.archive import list_archive
from salalocal.documents.container import open_container, read_member
from salalocal.documents.document import Document, Skipped, SourceFile
from salalocal.documents.folder import list_folder
from salalocal.documents.formats import Kind, Parsed, kind_of, parse_text
from salalocal.documents.limits import DEFAULT_LIMITS, Limits, too_large
from salalocal.documents.paths import library_key, shown
from salalocal.documents.regular import open_regular, read_regular
from salalocal.documents.sandbox import Sandbox
from salalocal.documents.screen import holds_private_key, minified_reason
from salalocal.errors import BadDocument, UnsupportedFormat

OnProgress = Callable[[int, int], None]


def read(path: str | os.PathLike[str], on_progress: OnProgress | None = None) -> Document:
    """Reads a file, a folder, a git repository or a zip archive into text that knows its place.

    A folder's .gitignore is respected; binaries, secrets, minified and oversized files in it are left out
    and listed in `skipped`. A file that is named directly is read whatever its name, or refused.
    `on_progress(files_done, files_total)` is called before the first and after each file.

    Raises BadDocument if nothing can be read or a limit is exceeded, UnsupportedFormat (also a BadInput)
    if a file named directly is of a type that is not read. Nothing is ever cut off.
    """
    return read_within(path, DEFAULT_LIMITS, on_progress)


def read_within(path: str | os.PathLike[str], limits: Limits, on_progress: OnProgress | None = None) -> Document:
    """`read` with other limits."""
    text = os.fspath(path)
    if not text:
        raise BadDocument("no file or folder was named")
    place = Path(os.path.abspath(os.path.expanduser(text)))
    name = shown(place.name or str(place))
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadDocument(f"{shown(text)}: there is no such file or folder") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadDocument(f"{shown(text)} cannot be opened ({reason})") from error
    try:
        with Sandbox(limits) as sandbox:
            reading = _Reading(limits, sandbox, on_progress)
            if stat.S_ISDIR(mode):
                return reading.folder(name, place)
            return reading.file(name, place)
    except (BadDocument, UnsupportedFormat) as error:
        raise type(error)(f"{name} {error}") from error


class _Reading:
    """One call of `read`. Its errors are reasons that follow a file's name."""

    def __init__(self, limits: Limits, sandbox: Sandbox, on_progress: OnProgress | None) -> None:
        self._limits = limits
        self._sandbox = sandbox
        self._on_progress = on_progress or _ignore_progress

    def folder(self, name: str, folder: Path) -> Document:
        paths, skipped = list_folder(folder, self._limits)
        root = os.path.realpath(folder)
        return self._collect(name, paths, skipped, lambda path, limit: read_regular(os.path.join(root, path), limit))

    def file(self, name: str, path: Path) -> Document:
        kind = kind_of(name, b"")
        if kind is Kind.ZIP:
            return self._archive(name, path)
        self._on_progress(0, 1)
        limit = self._limits.text_bytes if kind is Kind.TEXT else self._limits.rich_bytes
        files, skipped = self._parse(name, read_regular(path, limit, follow=True))
        self._on_progress(1, 1)
        return Document(name, files, skipped)

    def _archive(self, name: str, path: Path) -> Document:
        with open_regular(path, follow=True) as stream, open_container(stream, self._limits) as archive:
            members, skipped = list_archive(archive, self._limits)

            def load(member: str, limit_bytes: int) -> bytes:
                size_bytes = members[member].file_size
                if size_bytes > limit_bytes:
                    raise BadDocument(too_large(size_bytes, limit_bytes))
                return read_member(archive, members[member], self._limits)

            return self._collect(name, list(members), skipped, load)

    def _collect(
        self,
        name: str,
        paths: Sequence[str],
        skipped: list[Skipped],
        load: Callable[[str, int], bytes],
    ) -> Document:
        """The document `name` of many files; `load(path, limit_bytes)` gives one's bytes."""
        files: list[SourceFile] = []
        self._on_progress(0, len(paths))
        for done, path in enumerate(paths, 1):
            try:
                found, left_out = self._one_of_many(path, load)
            except (BadDocument, UnsupportedFormat) as error:
                skipped.append(Skipped(shown(path), str(error)))
            else:
                files.extend(found)
                skipped.extend(left_out)
            self._on_progress(done, len(paths))
        if not files:
            raise BadDocument(_nothing(skipped))
        return Document(name, tuple(files), tuple(sorted(skipped, key=lambda item: library_key(item.path))))

    def _one_of_many(self, path: str, load: Callable[[str, int], bytes]) -> Parsed:
        kind = kind_of(path, b"")
        if kind is Kind.ZIP:
            raise BadDocument("is an archive inside another document; name it directly to read it")
        limit = self._limits.folder_text_bytes if kind is Kind.TEXT else self._limits.rich_bytes
        data = load(path, limit)
        if kind is Kind.TEXT and holds_private_key(data):
            raise BadDocument("holds a private key; name it directly to read it")
        files, skipped = self._parse(shown(path), data)
        reason = minified_reason(path, files[0].spans[0].text) if kind is Kind.TEXT else None
        if reason is not None:
            raise BadDocument(reason)
        return files, skipped

    def _parse(self, path: str, data: bytes) -> Parsed:
        kind = kind_of(path, data[:8])
        if not data:
            raise BadDocument("is empty")
        return parse_text(path, data) if kind is Kind.TEXT else self._sandbox.parse(kind, path, data)


def _ignore_progress(files_done: int, files_total: int) -> None:
    """For callers that do not watch."""


def _nothing(skipped: Sequence[Skipped]) -> str:
    """Why a folder or an archive gives no text at all."""
    if not skipped:
        return "holds no files"
    first = skipped[0]
    return f"holds no file that can be read: {len(skipped):,} left out, the first {first.path} ({first.reason})"
