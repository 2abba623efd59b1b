"""What a model on this machine is, from its headers alone: no weights are loaded.

Knows the two forms a model comes in (a folder with safetensors, a GGUF file) and asks their readers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salalocal.config import ModelConfig
from salalocal.errors import InvalidRequest
from salalocal.hub import find_model
from salalocal.tokenizer import Tokenizer
from salalocal.weights.gguf_source import GgufSource
from salalocal.weights.layout import parameter_count
from salalocal.weights.safetensors_source import SafetensorsSource
from salalocal.weights.source import TensorInfo

_README_HEAD_BYTES = 4096


@dataclass(frozen=True)
class ModelDescription:
    """One model, unloaded.

    Attributes:
        name: what it was asked for by.
        path: its folder or file.
        format: how it is stored.
        config: the network.
        parameters: numbers in all weights, packed or not; a tied head counts once.
        weight_bytes: size of its weight files.
        tensor_types: how many tensors are stored in which number format, most frequent first.
        license: as the model states it; None where it states none.
        tokenizer: None for a folder without one.
    """

    name: str
    path: Path
    format: Literal["safetensors", "gguf"]
    config: ModelConfig
    parameters: int
    weight_bytes: int
    tensor_types: Mapping[str, int]
    license: str | None
    tokenizer: Tokenizer | None

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises InvalidRequest where the model has none."""
        if self.tokenizer is None:
            raise InvalidRequest(f"{self.name} has no tokenizer.json; tokens cannot be counted with it")
        return self.tokenizer


def describe(path_or_name: str | Path) -> ModelDescription:
    """Reads a model's headers, config and tokenizer.

    Raises:
        ModelNotFound, BadConfig, BadCheckpoint, BadTokenizer, UnsupportedFormat: as `salalocal.load`.
    """
    path = find_model(path_or_name)
    name = str(path_or_name)
    if path.is_file():
        gguf = GgufSource(path)
        stated = gguf.metadata.get("general.license")
        return _description(
            name, path, "gguf", gguf.config, gguf.tensors, str(stated) if stated else None,
            Tokenizer.from_gguf(gguf.metadata),
        )  # fmt: skip
    config = ModelConfig.from_json(path / "config.json")
    tokenizer = Tokenizer.from_folder(path) if (path / "tokenizer.json").is_file() else None
    return _description(
        name, path, "safetensors", config, SafetensorsSource(path).tensors, _folder_license(path), tokenizer
    )


def _description(
    name: str,
    path: Path,
    kind: Literal["safetensors", "gguf"],
    config: ModelConfig,
    tensors: Mapping[str, TensorInfo],
    stated_license: str | None,
    tokenizer: Tokenizer | None,
) -> ModelDescription:
    folder = path.parent if path.is_file() else path
    types = Counter(tensor.dtype for tensor in tensors.values())
    return ModelDescription(
        name=name,
        path=path,
        format=kind,
        config=config,
        parameters=parameter_count(config),
        weight_bytes=sum((folder / file).stat().st_size for file in {tensor.file for tensor in tensors.values()}),
        tensor_types=dict(types.most_common()),
        license=stated_license,
        tokenizer=tokenizer,
    )


def _folder_license(folder: Path) -> str | None:
    """The `license:` line of the model card, else the name of a licence file."""
    card = folder / "README.md"
    if card.is_file():
        with card.open("rb") as file:
            head = file.read(_README_HEAD_BYTES).decode("utf-8", errors="replace")
        end = head.find("\n---", 3) if head.startswith("---\n") else -1
        match = re.search(r"^license:[ \t]*(\S.*)$", head[: max(end, 0)], re.MULTILINE)
        if match:
            return match.group(1).strip()
    return next((path.name for path in sorted(folder.glob("LICEN[CS]E*"))), None)
