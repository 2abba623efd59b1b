"""A folder's files: which are read, which are left out and why. Follows no symbolic link.

Knows the file system, git and the screens by name. Reads no file's content but .gitignore.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from salalocal.documents.document import Skipped
from salalocal.documents.ignore import IGNORED, IgnoreRules, list_with_git
from salalocal.documents.limits import Limits, size_text
from salalocal.documents.paths import library_key, shown
from salalocal.documents.regular import read_regular
from salalocal.documents.screen import GENERATED_FOLDERS, REPOSITORY_FOLDERS, name_reason
from salalocal.errors import BadDocument

GENERATED = "is a folder that tools generate; name it directly to read it"


def list_folder(folder: Path, limits: Limits) -> tuple[list[str], list[Skipped]]:
    """Paths of the files to read, relative to `folder`, in library order, and what is left out.

    A version control system's own folder (.git) is neither: it holds the files' history.
    Raises BadDocument if the folder cannot be opened, or exceeds `limits.folder_files` or `total_bytes`.
    """
    listing = _Listing(folder, limits)
    listing.add_folder("")
    return sorted(listing.files, key=library_key), sorted(listing.skipped, key=lambda item: library_key(item.path))


class _Listing:
    """What is known of a folder so far."""

    def __init__(self, root: Path, limits: Limits) -> None:
        self.files: list[str] = []
        self.skipped: list[Skipped] = []
        self._root = os.path.realpath(root)
        self._limits = limits
        self._total_bytes = 0
        self._straight: dict[str, bool] = {"": True}

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(shown(path), reason))
        self._check_count()

    def add_folder(self, folder: str) -> None:
        """Everything below `folder` ("" is the root): as git lists it, else by walking."""
        listing = list_with_git(Path(self._root, folder))
        if listing is None:
            for path in self._walk(folder):
                self.add(path)
            return
        prefix = f"{folder}/" if folder else ""
        for path in listing.ignored:
            self.skip(prefix + path, IGNORED)
        for path in listing.files:
            self.add(prefix + path.rstrip("/"))

    def add(self, path: str) -> None:
        """One path that is not ignored: a file to read, or something to leave out."""
        full = os.path.join(self._root, path)
        try:
            status = os.lstat(full)
        except FileNotFoundError:
            self.skip(path, "is known to git but is not there")
            return
        except OSError as error:
            self.skip(path, f"cannot be opened ({error.strerror})")
            return
        if stat.S_ISDIR(status.st_mode) and self._is_straight(path):
            self.add_folder(path)  # a repository inside the repository
            return
        reason = self._reason(path, full, status.st_mode)
        if reason is not None:
            self.skip(path, reason)
            return
        self.files.append(path)
        self._check_count()
        self._total_bytes += status.st_size
        if self._total_bytes > self._limits.total_bytes:
            raise BadDocument(
                f"holds more than {size_text(self._limits.total_bytes)} of files: name a folder further down"
            )

    def _reason(self, path: str, full: str, mode: int) -> str | None:
        """Why the file or link at `path` is left out, or None."""
        # A tracked path may lead through a folder that has since been replaced by a link.
        if not self._is_straight(os.path.dirname(path)):
            return "lies behind a symbolic link"
        if stat.S_ISLNK(mode):
            return self._link_reason(full)
        if not stat.S_ISREG(mode):
            return "is a device, pipe or socket, not a file"
        return name_reason(path)

    def _check_count(self) -> None:
        if len(self.files) + len(self.skipped) > self._limits.folder_files:
            raise BadDocument(f"holds more than {self._limits.folder_files:,} files: name a folder further down")

    def _is_straight(self, folder: str) -> bool:
        """True if no part of `folder` is a symbolic link."""
        if folder not in self._straight:
            full = os.path.join(self._root, folder)
            self._straight[folder] = os.path.normcase(os.path.realpath(full)) == os.path.normcase(full)
        return self._straight[folder]

    def _link_reason(self, full: str) -> str:
        target = os.path.realpath(full)
        inside = os.path.normcase(target).startswith(os.path.join(os.path.normcase(self._root), ""))
        if not inside:
            return "is a symbolic link that leaves the folder"
        return f"is a symbolic link to {shown(os.path.relpath(target, self._root))}; links are not followed"

    def _walk(self, start: str) -> Iterator[str]:
        """Paths below `start` that the .gitignore files there do not leave out; folders are walked into."""
        rules = IgnoreRules(_rules_reader(os.path.join(self._root, start)))
        pending = [""]
        while pending:
            folder = pending.pop()
            full = os.path.join(self._root, start, folder)
            try:
                entries = sorted(os.scandir(full), key=lambda entry: entry.name)
            except OSError as error:
                if not folder and not start:
                    raise BadDocument(f"cannot be opened ({error.strerror})") from error
                self.skip(os.path.join(start, folder) + "/", f"cannot be opened ({error.strerror})")
                continue
            for entry in entries:
                inner = f"{folder}/{entry.name}" if folder else entry.name
                path = f"{start}/{inner}" if start else inner
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and entry.name in REPOSITORY_FOLDERS:
                    continue
                if rules.ignores(inner, is_folder=is_folder):
                    self.skip(path + "/" * is_folder, IGNORED)
                elif is_folder and entry.name in GENERATED_FOLDERS:
                    self.skip(path + "/", GENERATED)
                elif is_folder and not self._is_straight(path):  # a junction, which Windows shows as a folder
                    self.skip(path + "/", self._link_reason(entry.path))
                elif is_folder:
                    pending.append(inner)
                elif entry.name != ".git":  # a submodule's pointer to its repository
                    yield path


def _rules_reader(root: str) -> Callable[[str], str | None]:
    """Reads the .gitignore of a folder below `root`, for IgnoreRules; at the root also git's own exclude file."""

    def read_rules(folder: str) -> str | None:
        names = [".gitignore"] if folder else [".git/info/exclude", ".gitignore"]
        texts = [_small_text(os.path.join(root, folder, name)) for name in names]
        return "\n".join(filter(None, texts)) or None

    return read_rules


def _small_text(path: str) -> str | None:
    """The text of a regular file of at most 1 MiB, or None."""
    try:
        data = read_regular(path, 1 << 20)
    except BadDocument:
        return None
    return data.decode("utf-8", "surrogateescape")
