"""The limits within which documents are read, in one place.

Knows numbers only. What exceeds a limit is refused or listed as skipped; nothing is ever cut off.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    The defaults are generous against the model: a million tokens are about 4 MB of English text.
    """

    text_bytes: int = 64 << 20
    """One text file, or the text taken out of one PDF, EPUB, DOCX or HTML file."""
    folder_text_bytes: int = 8 << 20
    """One text file met in a folder or an archive: twice a million tokens, so rather data than reading."""
    rich_bytes: int = 200 << 20
    """One PDF, EPUB, DOCX or HTML file; it and its text must fit into `parser_bytes`."""
    total_bytes: int = 2 << 30
    """All files of a folder that are read, or all members of an archive, uncompressed."""
    folder_files: int = 200_000
    """Files in a folder."""
    archive_files: int = 20_000
    """Members of an archive (a .zip, and the archives that .epub and .docx are)."""
    archive_ratio: int = 200
    """Uncompressed size divided by compressed size, of a member above 1 MiB and of a whole archive."""
    parser_seconds: float = 60.0
    """Time for one PDF, EPUB, DOCX or HTML file in the parser process."""
    parser_bytes: int = 1 << 30
    """Memory of the parser process."""


DEFAULT_LIMITS = Limits()


def size_text(size_bytes: int) -> str:
    """A size for a person: `812 bytes`, `3.4 MB`, `2.1 GB` (powers of 1024)."""
    if size_bytes < 1 << 10:
        return f"{size_bytes:,} byte{'s' * (size_bytes != 1)}"
    for unit, scale in (("KB", 1 << 10), ("MB", 1 << 20)):
        if size_bytes < scale << 10:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes / (1 << 30):.1f} GB"


def too_large(size_bytes: int, limit_bytes: int) -> str:
    """The reason for refusing a file of `size_bytes`."""
    return f"is too large ({size_text(size_bytes)}; the limit is {size_text(limit_bytes)})"
