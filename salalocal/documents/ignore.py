"""Which paths a project's .gitignore files leave out: asked of git, or worked out with pathspec.

Knows gitignore rules and how to run git without letting the repository run anything. Reads no documents.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

_GIT_SECONDS = 60.0
# A repository's own configuration may name programs to run; these settings switch them off.
_HARMLESS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false")
_MAX_STARS = 3
IGNORED = "is ignored by .gitignore"


@dataclass(frozen=True)
class GitListing:
    """What git says of a folder: paths to read, and ignored paths (a folder's end in `/`)."""

    files: tuple[str, ...]
    ignored: tuple[str, ...]


def list_with_git(folder: Path) -> GitListing | None:
    """The paths of `folder`, relative to it, that git tracks or would track.

    None where git is not installed, `folder` is in no work tree or is itself ignored (then the user has
    named it in spite of that), or git refuses (a repository of another owner).
    """
    if _git(folder, "rev-parse", "--is-inside-work-tree") != b"true\n":
        return None
    ignores_itself = _git(folder, "check-ignore", "--quiet", "--", ".")
    if ignores_itself is not None:
        return None
    files = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    ignored = _git(folder, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    if files is None or ignored is None:
        return None
    return GitListing(_paths(files), _paths(ignored))


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, or None if it is missing, fails or takes too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *_HARMLESS, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _paths(listing: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(name) for name in listing.split(b"\0") if name)


class IgnoreRules:
    """The .gitignore files of one tree; `read_rules(folder)` gives the text of a folder's, or None.

    Folders are relative to the tree's root, in `/` form, "" being the root. The deepest file that says
    something about a path decides, as in git.
    """

    def __init__(self, read_rules: Callable[[str], str | None]) -> None:
        self._read_rules = read_rules
        self._specs: dict[str, GitIgnoreSpec | None] = {}

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """True if the rules leave `path` out. Its parent folders must have been asked about before."""
        name = path + "/" if is_folder else path
        folder = path.rpartition("/")[0]
        while True:
            spec = self._spec(folder)
            if spec is not None:
                inside = name[len(folder) + 1 :] if folder else name
                include = spec.check_file(inside).include
                if include is not None:
                    return include
            if not folder:
                return False
            folder = folder.rpartition("/")[0]

    def _spec(self, folder: str) -> GitIgnoreSpec | None:
        if folder not in self._specs:
            text = self._read_rules(folder)
            self._specs[folder] = None if text is None else _spec_of(text.splitlines())
        return self._specs[folder]


def _spec_of(lines: Iterable[str]) -> GitIgnoreSpec | None:
    """The rules of one file; a line that is no pattern is passed over, as git does.

    So is one with many stars: pathspec tries every way to spread a name over them, which can take hours.
    """
    usable = []
    for line in lines:
        if line.count("**") > _MAX_STARS or any(part.count("*") > _MAX_STARS for part in line.split("/")):
            continue
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue
        usable.append(line)
    return GitIgnoreSpec.from_lines(usable) if usable else None
