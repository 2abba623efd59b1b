"""A zip archive's files: which are read, which are left out and why. Nothing is written to disk.

Knows the names in an archive, and the same screens as for a folder.
"""

from __future__ import annotations

import zipfile

from salalocal.documents.container import member_reason, read_member
from salalocal.documents.document import Skipped
from salalocal.documents.folder import GENERATED
from salalocal.documents.ignore import IGNORED, IgnoreRules
from salalocal.documents.limits import Limits
from salalocal.documents.paths import library_key, shown, unsafe_reason
from salalocal.documents.screen import GENERATED_FOLDERS, REPOSITORY_FOLDERS, name_reason
from salalocal.errors import BadDocument


def list_archive(archive: zipfile.ZipFile, limits: Limits) -> tuple[dict[str, zipfile.ZipInfo], list[Skipped]]:
    """The members to read by path, in library order, and what is left out.

    Raises BadDocument if every file in the archive is encrypted.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    skipped: list[Skipped] = []
    all_files = [member for member in archive.infolist() if not member.is_dir()]
    if all_files and all(member.flag_bits & 0x1 for member in all_files):
        raise BadDocument("needs a password: unpack it and read the folder")
    for member in all_files:
        path = "/".join(part for part in member.filename.replace("\\", "/").split("/") if part not in ("", "."))
        reason = unsafe_reason(member.filename) or member_reason(member, limits)
        if reason is None and path in members:
            reason = "is in the archive twice; the first is read"
        if reason is not None:
            skipped.append(Skipped(shown(member.filename), reason))
        else:
            members[path] = member
    screen = _FolderScreen(archive, members, limits)
    chosen: dict[str, zipfile.ZipInfo] = {}
    for path in sorted(members, key=library_key):
        left_out = screen.reason(path)
        if left_out is not None:
            skipped.extend(left_out)
        elif (reason := name_reason(path)) is not None:
            skipped.append(Skipped(shown(path), reason))
        else:
            chosen[path] = members[path]
    return chosen, sorted(skipped, key=lambda item: library_key(item.path))


class _FolderScreen:
    """Leaves out ignored and generated folders of an archive, each mentioned once."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], limits: Limits) -> None:
        self._archive = archive
        self._members = members
        self._limits = limits
        self._rules = IgnoreRules(self._read_rules)
        self._folders: dict[str, str | None] = {}

    def reason(self, path: str) -> list[Skipped] | None:
        """None if `path` is to be read, else what to report for it: nothing if its folder has been reported."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            known = folder in self._folders
            if not known:
                self._folders[folder] = self._folder_reason(folder, parts[depth - 1])
            reason = self._folders[folder]
            if reason is not None:
                report = not known and parts[depth - 1] not in REPOSITORY_FOLDERS
                return [Skipped(shown(folder) + "/", reason)] if report else []
        if self._rules.ignores(path, is_folder=False):
            return [Skipped(shown(path), IGNORED)]
        return None

    def _folder_reason(self, folder: str, name: str) -> str | None:
        if name in GENERATED_FOLDERS or name in REPOSITORY_FOLDERS:
            return GENERATED
        return IGNORED if self._rules.ignores(folder, is_folder=True) else None

    def _read_rules(self, folder: str) -> str | None:
        member = self._members.get(f"{folder}/.gitignore" if folder else ".gitignore")
        if member is None or member.file_size > 1 << 20:
            return None
        try:
            return read_member(self._archive, member, self._limits).decode("utf-8", "surrogateescape")
        except BadDocument:
            return None  # it is read again as a file, and its damage is reported there
