"""Tells one set of model files from another without reading all of them. Knows no formats."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from salalocal.errors import BadCheckpoint

# A training run changes every weight, so places spread over a file see it; what copies bytes exactly goes unseen.
_SAMPLES = 256
_SAMPLE_BYTES = 4096


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256, in hexadecimal, of the sizes of files and of 1 MiB of each, spread evenly; small files count whole.

    Neither names nor dates matter, so a copy of the model is the same model.

    Raises:
        BadCheckpoint: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                digest.update(size.to_bytes(8, "little"))
                if size <= _SAMPLES * _SAMPLE_BYTES:
                    digest.update(file.read())
                    continue
                for index in range(_SAMPLES):
                    file.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be read ({error.strerror or error})") from error
    return digest.hexdigest()
