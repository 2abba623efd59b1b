"""Writes a safetensors file whose bytes depend on nothing but its tensors and metadata.

Source of the format: the safetensors README. The library's own writer puts metadata in an order that changes from run
to run, holds a whole file twice in memory, and does not flush to the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from salalocal.atomic import replacing

_WORDS = {
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}  # fmt: skip
_ALIGNMENT = 8


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Puts a file at `path`, whole or not at all.

    Args:
        path: replaced if it is there.
        tensors: by name, on the CPU, of a dtype in bfloat16, float32, int32, int8, uint8.
        metadata: strings.

    Returns:
        The file's SHA-256 in hexadecimal.

    Raises:
        OSError: it cannot be written.
    """
    # Wide elements first, so that every tensor starts at a multiple of its element.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _WORDS[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with replacing(path) as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            file.write(piece)
            digest.update(piece)
        for name in names:
            values = tensors[name].contiguous().flatten().view(torch.uint8).numpy().data
            file.write(values)
            digest.update(values)
    return digest.hexdigest()
