"""Names of files inside a folder or an archive: how they are shown and in which order they are read.

Knows strings only.
"""

from __future__ import annotations

import re

_DIGITS = re.compile(r"([0-9]+)")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def shown(path: str) -> str:
    """`path` with undecodable bytes, control and text-direction characters as escapes: safe to print."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def library_key(path: str) -> tuple[object, ...]:
    """Sort key of library order: folder by folder, without case, numbers by value (2 before 10)."""
    parts = tuple(tuple(_chunks(part)) for part in path.split("/"))
    return (parts, path)


def _chunks(part: str) -> list[object]:
    # Split at digits, texts and numbers alternate, so equal positions compare like with like. A number
    # is its length and its digits: int() refuses more than 4,300 of them.
    chunks: list[object] = list(_DIGITS.split(part.casefold()))
    for index in range(1, len(chunks), 2):
        digits = str(chunks[index]).lstrip("0")
        chunks[index] = (len(digits), digits)
    return chunks


def unsafe_reason(name: str) -> str | None:
    """Why an archive member's name is not one of a file inside the archive, or None."""
    if "\0" in name or not name:
        return "has no usable name"
    parts = name.replace("\\", "/").split("/")
    if len(name) > 4096 or max(map(len, parts)) > 255:
        return "has a name that is too long for a file"
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        return "has a name that points outside the archive"
    return None
