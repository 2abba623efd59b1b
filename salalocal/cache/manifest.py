"""What a saved session's folder holds, as its manifest.json says it. Knows no torch and no tensors.

A session is a run of token files, one after the other, and the states of the linear layers at some positions. Whatever
the manifest does not name is not there: a file counts from the moment a manifest that names it is in place.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from salalocal.errors import BadSession
from salalocal.fields import shorten

MANIFEST_NAME = "manifest.json"
FORMAT, VERSION = "salalocal-session", 1
_FILE_NAME = re.compile(r"(tokens|state)-[0-9a-f]{16}\.safetensors")
_MAX_BYTES = 64 * 1024 * 1024
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class ModelIdentity:
    """Whose memory it is.

    Attributes:
        name: the model's, for messages only.
        fingerprint: of its config and weights.
        dtype: of K and V, for example "bfloat16".
    """

    name: str
    fingerprint: str
    dtype: str


@dataclass(frozen=True)
class TokensFile:
    """K, V, compressed keys and ids of the tokens [start, stop); `checksums` are CRC-32, one per strip."""

    name: str
    start: int
    stop: int
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class StateFile:
    """Linear states after `position` tokens, and the logits there where they were known."""

    name: str
    position: int
    has_logits: bool
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """One saved session.

    Attributes:
        model: who read it.
        block_size: tokens per K/V block; token files begin at a multiple of it.
        length: tokens read.
        tokens: files that cover [0, length) in order.
        states: by ascending position, all but that of position 0, which is known; the last is at `length`.
        checkpoints: positions of the checkpoints the session kept, the one at 0 left out.
    """

    model: ModelIdentity
    block_size: int
    length: int
    tokens: tuple[TokensFile, ...]
    states: tuple[StateFile, ...]
    checkpoints: tuple[int, ...]

    @property
    def file_names(self) -> set[str]:
        """All files of the session but the manifest."""
        return {file.name for file in self.tokens} | {file.name for file in self.states}

    def to_bytes(self) -> bytes:
        """The manifest's text, its own SHA-256 at the end."""
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return _text({**body, "sha256": _digest(body)})


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of the session saved in `folder`, and its bytes.

    Raises:
        BadSession: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BadSession(f"{folder}: no saved session here ({MANIFEST_NAME} is missing)") from None
    except OSError as error:
        raise BadSession(f"{path}: cannot be read ({error.strerror or error})") from error
    return _parse(path, data), data


def is_session_file(name: str) -> bool:
    """Whether a file of this name may belong to a saved session."""
    return name == MANIFEST_NAME or _FILE_NAME.fullmatch(name) is not None


def is_manifest(data: bytes) -> bool:
    """Whether these bytes look like the manifest of a session, of any version, damaged or not."""
    return FORMAT.encode() in data


def _parse(path: Path, data: bytes) -> Manifest:
    damaged = f"{path}: is damaged; the documents must be read again"
    try:
        body = json.loads(data) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        raise BadSession(damaged) from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BadSession(f"{path}: is not the manifest of a saved session")
    version = body.get("version")
    if version != VERSION or isinstance(version, bool):
        raise BadSession(
            f"{path}: the session was saved in format version {shorten(version)}; this salalocal reads version "
            f"{VERSION}, so the documents must be read again"
        )
    try:
        is_whole = _text(body) == data and body.pop("sha256") == _digest(body)
    except (KeyError, RecursionError, UnicodeError):
        is_whole = False
    if not is_whole:
        raise BadSession(damaged)
    try:
        manifest = _manifest(body)
    except (KeyError, TypeError):
        raise BadSession(f"{path}: has fields that this salalocal did not write") from None
    if not _is_sound(manifest):
        raise BadSession(f"{path}: names files that do not make up a session")
    return manifest


def _text(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _digest(body: dict[str, object]) -> str:
    return hashlib.sha256(_text(body)).hexdigest()


def _manifest(body: dict[str, object]) -> Manifest:
    """From parsed JSON; KeyError or TypeError where it has another shape."""
    fields = {name: value for name, value in body.items() if name not in ("format", "version")}
    model = _made(ModelIdentity, fields.pop("model"))
    tokens = tuple(_made(TokensFile, each) for each in _list(fields.pop("tokens")))
    states = tuple(_made(StateFile, each) for each in _list(fields.pop("states")))
    checkpoints = _integers(fields.pop("checkpoints"))
    block_size, length = _integers([fields.pop("block_size"), fields.pop("length")])
    if fields:
        raise TypeError(sorted(fields))
    return Manifest(model, block_size, length, tokens, states, checkpoints)


def _made(kind: type[_Made], value: object) -> _Made:
    if not isinstance(value, dict):
        raise TypeError(kind)
    fields = {name: _integers(item) if name == "checksums" else item for name, item in value.items()}
    made = kind(**fields)
    for name, item in fields.items():
        wanted = {"checksums": tuple, "has_logits": bool, "start": int, "stop": int, "position": int}.get(name, str)
        if type(item) is not wanted:
            raise TypeError(name)
    return made


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _integers(value: object) -> tuple[int, ...]:
    numbers = _list(value)
    if any(type(number) is not int for number in numbers):
        raise TypeError(value)
    return tuple(number for number in numbers if isinstance(number, int))


def _is_sound(manifest: Manifest) -> bool:
    """Whether the files are named as ours are, lie end to end, and every position that is needed has its state."""
    edges = [0, *(file.stop for file in manifest.tokens)]
    positions = [file.position for file in manifest.states]
    wanted = {*manifest.checkpoints, manifest.length} - {0}
    return (
        manifest.block_size > 0
        and all(_FILE_NAME.fullmatch(name) for name in manifest.file_names)
        and len(manifest.file_names) == len(manifest.tokens) + len(manifest.states)
        and [file.start for file in manifest.tokens] == edges[:-1]
        and all(file.start < file.stop and not file.start % manifest.block_size for file in manifest.tokens)
        and edges[-1] == manifest.length
        and positions == sorted(wanted)
        and (not positions or 0 < positions[0] <= positions[-1] == manifest.length)
        and list(manifest.checkpoints) == sorted(set(manifest.checkpoints) - {0})
    )
