"""Saves a session while it goes on reading: when a save is due, and the thread that writes it."""

from __future__ import annotations

import logging
import threading
import time

from salalocal.engine.session_files import FILE_TOKENS, Commit, Contents, SessionFiles
from salalocal.errors import BadSession

_LOG = logging.getLogger(__name__)

# A killed process has this much to read again: whichever comes first.
_EVERY_TOKENS = 32768
_EVERY_SECONDS = 20.0
# More new tokens than these are written without copying them first, while the session waits.
_MAX_COPIED_TOKENS = 4 * FILE_TOKENS


class WriteBehind:
    """Writes what a session holds, one save at a time; the session waits only while its new tokens are copied.

    A save that fails ends it with a warning, and the session reads on.

    Args:
        files: where to.
        length: tokens the session holds.
    """

    def __init__(self, files: SessionFiles, length: int) -> None:
        self.files = files
        self._length = length
        self._saved_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self._problem: BadSession | None = None

    def after_chunk(self, contents: Contents, is_checkpoint: bool) -> None:
        """Saves if a checkpoint was made or enough has been read since the last save.

        Args:
            contents: what the session holds now; not used after the call.
            is_checkpoint: whether this is a place worth coming back to.
        """
        if self._problem is not None:
            return
        length = len(contents.token_ids)
        is_due = (
            is_checkpoint
            or length - self._length >= _EVERY_TOKENS
            or time.monotonic() - self._saved_at >= _EVERY_SECONDS
        )
        if not is_due or length == self._length:
            return
        self.wait()
        commit = self.files.plan(contents)
        if (
            sum(file.stop - file.start for file in commit.manifest.tokens if file.name in commit.new)
            > _MAX_COPIED_TOKENS
        ):
            self._write(commit)
        else:
            commit.take_copies()
            # Not a daemon: a program that ends by itself ends after the save.
            self._thread = threading.Thread(target=self._write, args=(commit,), name="salalocal save")
            self._thread.start()
        self._length, self._saved_at = length, time.monotonic()

    def cut(self, length: int) -> None:
        """The session goes back to `length` tokens."""
        self.wait()
        self.files.cut(length)
        self._length = min(self._length, length)

    def wait(self) -> None:
        """Until no save is going on."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, commit: Commit) -> None:
        try:
            self.files.write(commit)
        except BadSession as problem:
            self._problem = problem
            _LOG.warning("%s; the session is no longer saved while it reads", problem)
