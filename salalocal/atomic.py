"""Files that are there whole or not at all: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
_RENAME_TRIES = 10
_RENAME_WAIT_SECONDS = 0.1


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends; after an error `path` is as before.

    A killed process leaves a file ending in PARTIAL_SUFFIX beside `path`; `remove_partial_files` clears them away.

    Raises:
        OSError: the folder is not there, not writable, or full.
    """
    # Not tempfile: its files are for their owner only, and a model is no secret.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def is_partial(path: Path) -> bool:
    """Whether `path` is named like a file that `replacing` has not finished."""
    return path.name.startswith(".") and path.suffix == PARTIAL_SUFFIX


def remove_partial_files(folder: Path) -> None:
    """Removes what killed writers left in `folder`."""
    for path in filter(is_partial, list(folder.iterdir())):
        path.unlink(missing_ok=True)


def _rename(partial: Path, path: Path) -> None:
    # On Windows a virus scanner that looks into a new file keeps it from being renamed for a moment.
    for _ in range(_RENAME_TRIES):
        try:
            os.replace(partial, path)
        except PermissionError:
            time.sleep(_RENAME_WAIT_SECONDS)
        else:
            return
    os.replace(partial, path)


def flush_folder(folder: Path) -> None:
    """Makes new and renamed files in `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
