"""Finds a config.json for planning, which needs no weights: of a model here, or of a hub id. Downloads nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from salalocal.errors import ModelNotFound
from salalocal.hub.find import find_model

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# The sizes of released models, one file per id. The order of the layers is not the released one: no size depends on it.
_RELEASED = Path(__file__).parent.parent / "assets" / "configs"


def find_config(name_or_path: str) -> Path:
    """What says how large a model is: a config.json, or a .gguf file.

    Args:
        name_or_path: as for `find_model`, or a hub id "owner/name" that is known here or in the hub's local cache.

    Raises:
        ModelNotFound, UnsupportedFormat: as `find_model`, with the way out for a hub id.
    """
    try:
        path = find_model(name_or_path)
    except ModelNotFound:
        if not _HUB_ID.fullmatch(name_or_path) or os.path.isdir(name_or_path):
            raise
        found = next(_of_hub_id(name_or_path), None)
        if found is None:
            raise ModelNotFound(
                f"{name_or_path}: nothing is known of this hub id and nothing is downloaded for a plan; put its "
                "config.json alone into a folder and name that folder"
            ) from None
        return found
    return path if path.is_file() else path / "config.json"


def _of_hub_id(hub_id: str) -> Iterator[Path]:
    flat = hub_id.replace("/", "--")
    snapshots = _hub_cache() / f"models--{flat}" / "snapshots"
    # The newest first; a snapshot may hold some of a model's files only.
    yield from sorted(snapshots.glob("*/config.json"), key=lambda path: -path.stat().st_mtime)
    yield from (path for path in _RELEASED.glob("*.json") if path.stem.casefold() == flat.casefold())


def _hub_cache() -> Path:
    """Where the hub's own tools keep downloads."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    if parent := os.environ.get("HF_HOME"):
        return Path(parent).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"
