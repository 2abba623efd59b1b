"""What a run has finished: a JSON file beside the shards, with their checksums. Knows no tensors.

The manifest stays in the folder when the model is complete: it says what the model was made from, how, with which
error per kind of matrix, and how each file can be checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from salalocal.atomic import is_partial, replacing
from salalocal.errors import InvalidRequest
from salalocal.fields import Fields, read_json_object
from salalocal.quantization import KINDS

MANIFEST_NAME = "quantize.json"
_VERSION = 1


@dataclass(frozen=True)
class KindError:
    """How far packed matrices of a kind are from the originals: sums of squares, so that they can be added up."""

    matrices: int
    squared_error: float
    squared_norm: float

    def __add__(self, other: KindError) -> KindError:
        return KindError(
            self.matrices + other.matrices,
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
        )


@dataclass(frozen=True)
class ShardRecord:
    """A finished file: its checksum, and what it holds by kind."""

    sha256: str
    errors: Mapping[str, KindError]


class Manifest:
    """The finished shards of one job in `folder`.

    Args:
        folder: of the packed model.
        job: what is made from what and how, as JSON; a run is continued only where all of it is the same.
        shards: what is finished already, by file name.
    """

    def __init__(self, folder: Path, job: Mapping[str, object], shards: Mapping[str, ShardRecord]) -> None:
        self._folder, self._job, self.shards = folder, job, dict(shards)

    @staticmethod
    def open(folder: Path, job: Mapping[str, object], files: Iterable[str]) -> Manifest:
        """The manifest of a job that was begun in `folder`, or an empty one; `files` are the shards it will have.

        Raises:
            InvalidRequest: the folder holds a complete model, another job's shards, or files of someone else.
            BadConfig: the manifest is damaged.
        """
        if (folder / "config.json").exists():
            raise InvalidRequest(f"{folder}: already holds a model; remove it or name another folder with --out")
        if not (folder / MANIFEST_NAME).exists():
            if not all(map(is_partial, folder.iterdir())):
                raise InvalidRequest(f"{folder}: is not empty; name another folder with --out")
            return Manifest(folder, job, {})
        values = read_json_object(folder / MANIFEST_NAME)
        fields = Fields(values, str(folder / MANIFEST_NAME))
        # The job went through JSON before it was read back: tuples have become lists.
        if fields.integer("version", 0, 1 << 31) != _VERSION or fields.raw("job") != json.loads(json.dumps(job)):
            raise InvalidRequest(
                f"{folder}: holds an unfinished run from other weights or with other settings; "
                "remove it or name another folder with --out"
            )
        return Manifest(folder, job, _read_shards(fields, files))

    def is_finished(self, file: str) -> bool:
        """Whether a shard is there with the bytes that were written."""
        record, path = self.shards.get(file), self._folder / file
        return record is not None and path.is_file() and _sha256(path) == record.sha256

    def finish(self, file: str, record: ShardRecord) -> None:
        """Remembers a shard that was written."""
        self.shards[file] = record
        self.write()

    def write(self) -> None:
        """Puts the manifest on the disk."""
        shards = {file: asdict(record) for file, record in self.shards.items()}
        text = json.dumps({"version": _VERSION, "job": self._job, "shards": shards}, indent=1, sort_keys=True)
        with replacing(self._folder / MANIFEST_NAME) as file:
            file.write(text.encode() + b"\n")


def _read_shards(fields: Fields, files: Iterable[str]) -> dict[str, ShardRecord]:
    section = fields.section("shards")
    found = {file: section.section(file) for file in files} if section is not None else {}
    return {file: _read_shard(shard) for file, shard in found.items() if shard is not None}


def _read_shard(fields: Fields) -> ShardRecord:
    checksum, kinds = fields.raw("sha256"), fields.section("errors")
    if not isinstance(checksum, str) or kinds is None:
        fields.fail("sha256", "or errors is missing")
    sections = {kind: kinds.section(kind) for kind in KINDS}
    errors = {
        kind: KindError(
            kind_fields.integer("matrices", 0, 1 << 20),
            kind_fields.number("squared_error", 0, math.inf),
            kind_fields.number("squared_norm", 0, math.inf),
        )
        for kind, kind_fields in sections.items()
        if kind_fields is not None
    }
    return ShardRecord(checksum, errors)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
