"""The folders one session is saved in, and the one it saves itself into while it reads. Knows no network."""

from __future__ import annotations

from pathlib import Path

from salalocal.cache.manifest import MANIFEST_NAME, Manifest, ModelIdentity
from salalocal.engine.session_files import Contents, SessionFiles
from salalocal.engine.write_behind import WriteBehind
from salalocal.errors import InvalidRequest


class Saves:
    """Remembers per folder what it holds already, so that a further save writes only what is new.

    Args:
        model: who reads the session.
    """

    def __init__(self, model: ModelIdentity) -> None:
        self.model = model
        self._files: dict[Path, SessionFiles] = {}
        self._behind: WriteBehind | None = None

    def save(self, path: str | Path, contents: Contents) -> None:
        """As `Session.save`."""
        if self._behind is not None:
            self._behind.wait()
        files = self._at(path)
        files.check_folder()
        files.write(files.plan(contents))
        self._files[files.folder] = files

    def adopt(self, folder: Path, manifest: Manifest, text: bytes) -> None:
        """The session holds what `folder` holds."""
        files = self._at(folder)
        files.adopt(manifest, text)
        self._files[files.folder] = files

    def begin_behind(self, path: str | Path, length: int) -> None:
        """As `Session.save_behind`, of a session of `length` tokens."""
        files = self._at(path)
        files.check_folder()
        if files.folder not in self._files and (files.folder / MANIFEST_NAME).exists():
            raise InvalidRequest(f"{files.folder}: holds a saved session; restore it, or name another folder")
        if self._behind is not None:
            self._behind.wait()
        self._files[files.folder] = files
        self._behind = WriteBehind(files, length)

    def after_chunk(self, contents: Contents, is_checkpoint: bool) -> None:
        """As `WriteBehind.after_chunk`, where there is one."""
        if self._behind is not None:
            self._behind.after_chunk(contents, is_checkpoint)

    def cut(self, length: int) -> None:
        """The session goes back to `length` tokens; waits for a save that is going on."""
        if self._behind is not None:
            self._behind.cut(length)
        for files in self._files.values():
            files.cut(length)

    def _at(self, path: str | Path) -> SessionFiles:
        folder = Path(path).resolve()
        return self._files.get(folder) or SessionFiles(folder, self.model)
