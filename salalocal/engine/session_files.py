"""Keeps a folder in step with one session: writes what is new, drops what is stale. Knows no network and no threads.

A commit writes new files beside the old ones, then replaces the manifest, then removes what no manifest names. Killed
anywhere in between, the folder holds the state of the commit before, whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from salalocal.atomic import flush_folder, is_partial, remove_partial_files, replacing
from salalocal.cache.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelIdentity,
    StateFile,
    TokensFile,
    is_manifest,
    is_session_file,
)
from salalocal.cache.saved_session import state_tensors, token_tensors
from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.cache.strip_file import write_tensors
from salalocal.errors import BadSession, InvalidRequest

# Tokens per file, at most. Small files are joined into larger ones as they gather, so there are never many.
FILE_TOKENS = 32768


@dataclass(frozen=True)
class Contents:
    """What a session holds, without copies.

    Attributes:
        cache: K/V, compressed keys, and states at the session's length.
        token_ids: those read.
        logits: [V] after the last token; None where they are not known.
        checkpoints: those kept, by ascending position.
    """

    cache: SessionCache
    token_ids: Sequence[int]
    logits: Tensor | None
    checkpoints: Sequence[Checkpoint]


@dataclass
class Commit:
    """Files to be written and the manifest that will name them.

    Attributes:
        manifest: checksums of new files are not known yet.
        new: by name, what makes a file's tensors; called once.
    """

    manifest: Manifest
    new: dict[str, Callable[[], Mapping[str, Tensor]]]

    @property
    def new_tokens(self) -> int:
        """Tokens in the new files."""
        return sum(file.stop - file.start for file in self.manifest.tokens if file.name in self.new)

    def take_copies(self) -> None:
        """Makes the tensors now, on the CPU and independent of the session, so that it can go on."""
        for name, make in self.new.items():
            copies = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in make().items()}
            self.new[name] = partial(dict, copies)


class SessionFiles:
    """The files of one session in one folder.

    Args:
        folder: need not be there yet.
        model: who reads the session.
    """

    def __init__(self, folder: Path, model: ModelIdentity) -> None:
        self.folder = folder
        self._model = model
        self._manifest: Manifest | None = None
        self._text = b""
        # Tokens that are the same in memory and in the files.
        self._same = 0

    def adopt(self, manifest: Manifest, text: bytes) -> None:
        """The session holds what `manifest`, whose bytes are `text`, says."""
        self._manifest, self._text, self._same = manifest, text, manifest.length

    def cut(self, length: int) -> None:
        """The session went back to `length` tokens; what follows will be other tokens."""
        self._same = min(self._same, length)

    def check_folder(self) -> None:
        """Raises InvalidRequest if the folder is no folder or holds what does not belong to a saved session."""
        try:
            there = list(self.folder.iterdir())
            manifest = self.folder / MANIFEST_NAME
            foreign = [path for path in there if not is_session_file(path.name) and not is_partial(path)]
            if manifest in there and not is_manifest(manifest.read_bytes()):
                foreign.append(manifest)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InvalidRequest(f"{self.folder}: no session can be saved there ({error.strerror or error})") from error
        if foreign:
            raise InvalidRequest(
                f"{self.folder}: holds {min(foreign).name}, which belongs to no saved session; name a folder of its own"
            )

    def plan(self, contents: Contents) -> Commit:
        """What has to be written for the folder to hold `contents`."""
        if not self._is_as_left():
            self._manifest, self._same = None, 0
        length, cache = len(contents.token_ids), contents.cache
        new: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
        tokens = self._kept_tokens(length, cache.block_size)
        for start, stop in _cuts(tokens[-1].stop if tokens else 0, length, cache.block_size):
            name = _new_name("tokens")
            tokens.append(TokensFile(name, start, stop, ()))
            ids = torch.tensor(contents.token_ids[start:stop], dtype=torch.int32)
            new[name] = partial(token_tensors, cache, ids, start, stop)
        states = self._kept_states(contents)
        for position, (values, logits) in _states(contents).items():
            if position not in states:
                name = _new_name("state")
                states[position] = StateFile(name, position, logits is not None, ())
                new[name] = partial(state_tensors, values, logits)
        manifest = Manifest(
            model=self._model,
            block_size=cache.block_size,
            length=length,
            tokens=tuple(tokens),
            states=tuple(states[position] for position in sorted(states)),
            checkpoints=tuple(known.position for known in contents.checkpoints if known.position),
        )
        return Commit(manifest, new)

    def write(self, commit: Commit) -> None:
        """Makes the folder hold what `plan` planned.

        Raises:
            BadSession: it cannot be written; the folder holds what it held.
        """
        if commit.manifest == self._manifest:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sums = {name: write_tensors(self.folder / name, make()) for name, make in commit.new.items()}
            manifest = _with_checksums(commit.manifest, sums)
            text = manifest.to_bytes()
            flush_folder(self.folder)
            with replacing(self.folder / MANIFEST_NAME) as file:
                file.write(text)
        except OSError as error:
            for name in commit.new:
                (self.folder / name).unlink(missing_ok=True)
            raise BadSession(
                f"{self.folder}: the session cannot be saved there ({error.strerror or error}); what was saved before "
                "is still good"
            ) from error
        self.adopt(manifest, text)
        self._remove_unnamed(manifest)

    def _is_as_left(self) -> bool:
        """Whether the folder still holds what was last written or adopted, and nobody else has saved there since."""
        try:
            there = {path.name for path in self.folder.iterdir()}
            return (
                self._manifest is not None
                and self._manifest.file_names <= there
                and (self.folder / MANIFEST_NAME).read_bytes() == self._text
            )
        except OSError:
            return False

    def _kept_tokens(self, length: int, block_size: int) -> list[TokensFile]:
        """Files that stay: whole blocks that are still the same, and larger than what comes after them."""
        kept = list(self._manifest.tokens) if self._manifest else []
        if kept and kept[-1].stop == length == self._same:
            return kept
        while kept and (kept[-1].stop > min(self._same, length) or kept[-1].stop % block_size):
            kept.pop()
        whole = length - length % block_size
        while kept and kept[-1].stop < whole:
            last = kept[-1]
            if last.stop - last.start > whole - last.stop or whole - last.start > FILE_TOKENS:
                break
            kept.pop()
        return kept

    def _kept_states(self, contents: Contents) -> dict[int, StateFile]:
        wanted = _states(contents)
        saved = self._manifest.states if self._manifest else ()
        return {file.position: file for file in saved if file.position <= self._same and file.position in wanted}

    def _remove_unnamed(self, manifest: Manifest) -> None:
        try:
            remove_partial_files(self.folder)
            for path in list(self.folder.iterdir()):
                if is_session_file(path.name) and path.name not in {MANIFEST_NAME, *manifest.file_names}:
                    path.unlink(missing_ok=True)
        except OSError:
            # Open in another program on Windows: the next commit tries again.
            return


def _states(contents: Contents) -> dict[int, tuple[Sequence[Tensor], Tensor | None]]:
    """States to be saved, by position."""
    length = len(contents.token_ids)
    found: dict[int, tuple[Sequence[Tensor], Tensor | None]] = {length: (contents.cache.states, contents.logits)}
    for known in contents.checkpoints:
        found[known.position] = (known.states, known.logits)
    found.pop(0, None)
    return found


def _cuts(start: int, length: int, block_size: int) -> list[tuple[int, int]]:
    """Spans of at most FILE_TOKENS; a block that is not full comes by itself, as it will soon be replaced."""
    whole, most = length - length % block_size, max(block_size, FILE_TOKENS - FILE_TOKENS % block_size)
    edges = [*range(start, whole, most), whole, length]
    return [(begin, end) for begin, end in pairwise(edges) if start <= begin < end]


def _with_checksums(manifest: Manifest, sums: Mapping[str, tuple[int, ...]]) -> Manifest:
    tokens = tuple(replace(file, checksums=sums.get(file.name, file.checksums)) for file in manifest.tokens)
    states = tuple(replace(file, checksums=sums.get(file.name, file.checksums)) for file in manifest.states)
    return replace(manifest, tokens=tokens, states=states)


def _new_name(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(8)}.safetensors"
