"""Opening files that are files: never a pipe, a device or, unless asked to, what a link points to.

Knows the operating system's flags. Knows no formats.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from salalocal.documents.limits import too_large
from salalocal.errors import BadDocument


def open_regular(path: str | Path, *, follow: bool = False) -> BinaryIO:
    """The regular file at `path`, opened to read; a symbolic link is followed only if `follow`.

    Raises BadDocument if it is anything else or cannot be opened.
    """
    # Not blocking: opening a pipe waits for a writer. A file could become a pipe after it was listed.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise BadDocument(f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadDocument("is a device, pipe or socket, not a file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: str | Path, limit_bytes: int, *, follow: bool = False) -> bytes:
    """The bytes of the regular file at `path`, as `open_regular` opens it.

    Raises BadDocument if it cannot be opened or read, or holds more than `limit_bytes`.
    """
    with open_regular(path, follow=follow) as file:
        try:
            size_bytes = os.fstat(file.fileno()).st_size
            data = b"" if size_bytes > limit_bytes else file.read(limit_bytes + 1)
        except OSError as error:
            raise BadDocument(f"cannot be read ({error.strerror})") from error
    if max(size_bytes, len(data)) > limit_bytes:  # its size may be unknown beforehand, or have grown
        raise BadDocument(too_large(max(size_bytes, len(data)), limit_bytes))
    return data
