"""Zip containers: the checks that every archive passes before a byte of it is unpacked.

Knows .zip, and so what .epub and .docx are made of. Never writes to disk; knows nothing of what the members hold.
"""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from typing import BinaryIO

from salalocal.documents.limits import Limits, size_text
from salalocal.errors import BadDocument

_SMALL_MEMBER_BYTES = 1 << 20  # A member up to this size may be packed at any ratio: it can do no harm.
_ENCRYPTED = 0x1


def open_container(source: BinaryIO | bytes, limits: Limits) -> zipfile.ZipFile:
    """The archive in `source`, checked as a whole: number of members, sizes, ratio, overlaps.

    The declared sizes can be trusted this far: zipfile never unpacks more of a member than it declares.
    Raises BadDocument if the archive is damaged or exceeds a limit.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(0, io.SEEK_END)
    archive_bytes = stream.tell()
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadDocument(f"is damaged or is no zip archive ({error})") from error
    members = archive.infolist()
    if len(members) > limits.archive_files:
        raise BadDocument(f"holds {len(members):,} files; an archive may hold {limits.archive_files:,}")
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if unpacked > limits.total_bytes:
        raise BadDocument(f"unpacks to {size_text(unpacked)}; an archive may hold {size_text(limits.total_bytes)}")
    if packed > archive_bytes:
        raise BadDocument("has files that overlap inside it, as zip bombs do; it is not unpacked")
    if unpacked > _SMALL_MEMBER_BYTES and unpacked > limits.archive_ratio * archive_bytes:
        raise BadDocument(
            f"unpacks to {unpacked // archive_bytes:,} times its size, as zip bombs do; "
            f"the limit is {limits.archive_ratio}"
        )
    return archive


def member_reason(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    """Why `member` is not to be unpacked, or None."""
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted: unpack the archive with its password first"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in (0, stat.S_IFREG):
        return "is not a regular file"
    ratio_limit_bytes = limits.archive_ratio * max(1, member.compress_size)
    if member.file_size > max(_SMALL_MEMBER_BYTES, ratio_limit_bytes):
        return f"is packed more than {limits.archive_ratio}:1, as zip bombs are"
    return None


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: Limits) -> bytes:
    """The bytes of `member`. Raises BadDocument if it is damaged, encrypted or packed too tightly."""
    reason = member_reason(member, limits)
    if reason is not None:
        raise BadDocument(reason)
    try:
        with archive.open(member) as stream:
            return stream.read()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise BadDocument(f"is damaged inside its archive ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # compression method or encryption unknown to zipfile
        raise BadDocument(f"is packed in a way that cannot be read ({error})") from error
