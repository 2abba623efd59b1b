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
_DIRECTORY_ENTRY_BYTES = 512  # ten times the least that a member takes in the directory
_END_RECORD, _END_RECORD_64 = b"PK\x05\x06", b"PK\x06\x06"
_END_RECORD_BYTES = 22
_IN_64_BIT_RECORD = 0xFFFFFFFF
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA asks for memory as it likes
_ENCRYPTED = 0x1


def open_container(source: BinaryIO | bytes, limits: Limits, *, kind: str = "a zip archive") -> zipfile.ZipFile:
    """The archive in `source`, checked as a whole: number of members, sizes, ratio, overlaps.

    The declared sizes can be trusted this far: zipfile never unpacks more of a member than it declares.
    Raises BadDocument if the archive is damaged, and so not of its `kind`, or exceeds a limit.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(0, io.SEEK_END)
    archive_bytes = stream.tell()
    # zipfile reads the whole directory of an archive before anyone can count its members.
    if _directory_bytes(stream, archive_bytes) > limits.archive_files * _DIRECTORY_ENTRY_BYTES:
        raise BadDocument(f"holds far too many files; an archive may hold {limits.archive_files:,}")
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadDocument(f"is damaged or not {kind} ({error})") from error
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


def _directory_bytes(stream: BinaryIO, archive_bytes: int) -> int:
    """The declared size of an archive's directory; 0 if there is none (zipfile will say so)."""
    stream.seek(max(0, archive_bytes - (1 << 16) - _END_RECORD_BYTES))
    tail = stream.read()
    at = len(tail) - _END_RECORD_BYTES
    if at < 0 or not (tail.startswith(_END_RECORD, at) and tail.endswith(b"\0\0")):  # there is a comment behind
        at = tail.rfind(_END_RECORD)
    if at < 0:
        return 0
    size_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size_bytes == _IN_64_BIT_RECORD:
        at = tail.rfind(_END_RECORD_64, 0, at)
        size_bytes = int.from_bytes(tail[at + 40 : at + 48], "little") if at >= 0 else size_bytes
    return size_bytes


def member_reason(member: zipfile.ZipInfo, limits: Limits) -> str | None:
    """Why `member` is not to be unpacked, or None."""
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted: unpack the archive with its password first"
    if member.compress_type not in _PACKINGS:
        return "is packed in a way that is not read: pack it with Deflate"
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
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise BadDocument(f"is damaged inside its archive ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # encryption or patches unknown to zipfile
        raise BadDocument(f"is packed in a way that cannot be read ({error})") from error
