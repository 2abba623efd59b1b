"""A model folder's safetensors files as one source: a single file, or shards with an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from salalocal.errors import BadCheckpoint, BadConfig, UnsupportedFormat
from salalocal.fields import read_json_object, shorten
from salalocal.weights.safetensors_header import read_header
from salalocal.weights.source import TensorInfo

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PACKED_FORMAT, PACKED_VERSION = "salalocal-packed", "1"
_FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsSource:
    """Opens the weights of `folder`; all headers are checked here.

    Raises:
        BadCheckpoint: a file is missing or damaged, or the index and the shards disagree.
        UnsupportedFormat: the folder has no safetensors weights, or packed ones of another version.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / INDEX_NAME).is_file():
            placed = _read_index(folder)
        elif (folder / SINGLE_NAME).is_file():
            placed = {}
        else:
            pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            hint = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
            raise UnsupportedFormat(f"{folder}: no {SINGLE_NAME} and no {INDEX_NAME} in it{hint}")
        self.tensors: Mapping[str, TensorInfo] = {}
        self._paths: dict[str, Path] = {}
        for file in sorted(set(placed.values())) or [SINGLE_NAME]:
            self._add(folder / file, placed)
        self.files = [folder / "config.json", *sorted(set(self._paths.values()))]
        for name, file in placed.items():
            if name not in self._paths:
                raise BadCheckpoint(f"{folder / INDEX_NAME}: tensor {shorten(name)} is not in {file}")

    def _add(self, path: Path, placed: dict[str, str]) -> None:
        entries, metadata = read_header(path)
        version = metadata.get("version", "none")
        if metadata.get("format") == PACKED_FORMAT and version != PACKED_VERSION:
            raise UnsupportedFormat(
                f"{path}: packed weights of version {shorten(version)}; this salalocal reads version {PACKED_VERSION}"
            )
        found: dict[str, TensorInfo] = {}
        for name, entry in entries.items():
            if placed and placed.get(name) != path.name:
                raise BadCheckpoint(f"{path}: holds tensor {shorten(name)}, which the index puts elsewhere")
            found[name] = TensorInfo(path.name, entry.shape, entry.dtype, entry.dtype in _FLOATS)
            self._paths[name] = path
        self.tensors = {**self.tensors, **found}

    def read(self, name: str) -> Tensor:
        """One tensor's values on the CPU, in the file's dtype."""
        path = self._paths[name]
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{path}: tensor {shorten(name)} cannot be read ({error})") from error
        return tensor


def _read_index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_NAME
    try:
        weight_map = read_json_object(path).get("weight_map")
    except BadConfig as error:
        raise BadCheckpoint(str(error)) from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{path}: weight_map is missing or not an object")
    for name, file in weight_map.items():
        # The same rule on every system: a plain name, never a path, a drive or a stream.
        if not isinstance(file, str) or not file.endswith(".safetensors") or any(c in file for c in '/\\:*?"<>|\0'):
            raise BadCheckpoint(f"{path}: tensor {shorten(name)} is placed in {shorten(file)}, not a plain file name")
        if not (folder / file).is_file():
            raise BadCheckpoint(f"{path}: {file} is missing; download the model again")
    return weight_map
