"""Reads GGUF files: metadata, tensor directory, and one tensor at a time as float32.

Knows the container (ggml's docs/gguf.md, versions 2 and 3, little-endian) and nothing of any architecture.
The header is walked here, because `gguf.GGUFReader` trusts counts and offsets; only the arithmetic of the
block formats comes from the `gguf` package. Every size is compared with the file's before it is used, so
a damaged file ends in `GgufError` and never in a crash, a hang or an allocation of what it claims.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from salalocal_quant.gguf_header import (
    GgufError,
    HeaderReader,
    Metadata,
    read_count,
    read_metadata,
)

MAX_TENSORS = 1 << 16
MAX_DIMS = 4
MAX_NAME_BYTES = 64  # the format's own limit
MAX_ALIGNMENT = 1 << 20
CHUNK_ELEMENTS = 1 << 20  # what one step of dequantising holds beside the result: a few MB

# What every supported release of the gguf package dequantises.
_READABLE_NAMES = (
    *("F32", "F16", "BF16"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)


@dataclass(frozen=True)
class GgufTensor:
    """One line of the tensor directory.

    `shape` is in PyTorch's order (rows first; GGUF stores it reversed). `ggml_type` is ggml's name of the
    format ("F32", "Q4_1"). `offset` counts from the start of the file. `readable` says whether `read` can
    turn the format into float32.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: str
    offset: int
    n_bytes: int
    readable: bool


class GgufFile:
    """A GGUF file, mapped into memory; the file must not shrink while it is open.

    `metadata` maps keys to int, float, bool, str or a list of one of these; `tensors` maps names to
    `GgufTensor` in file order. Use as a context manager, or call `close`.

    Raises `GgufError` (naming file, key or tensor) for anything that is not a sound GGUF file, and
    `OSError` when the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise GgufError(f"{self.path}: {size} bytes are too few for a GGUF file")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            header = HeaderReader(self._map, str(self.path))
            n_tensors, n_keys = _read_prologue(header)
            self.metadata: Metadata = MappingProxyType(read_metadata(header, n_keys))
            self.tensors: Mapping[str, GgufTensor] = MappingProxyType(
                _read_directory(header, n_tensors, _alignment(self.metadata, str(self.path)))
            )
        except BaseException:
            self._map.close()
            raise

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`, dequantised: float32, contiguous, on the CPU, a copy of the caller's own.

        Holds the result and a few MB, never a second whole tensor. Values are as stored: NaN and Inf are
        the caller's to find. Raises `GgufError` when there is no such tensor or its format is not read.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise GgufError(f"{self.path}: there is no tensor {name!r}")
        if not tensor.readable:
            raise GgufError(
                f"{self.path}: tensor {name!r} is stored as {tensor.ggml_type}, which cannot be turned into "
                f"float32; readable are {', '.join(_READABLE_NAMES)}"
            )
        kind = GGMLQuantizationType[tensor.ggml_type]
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        out = torch.empty(prod(tensor.shape), dtype=torch.float32)
        flat = out.numpy()
        raw = np.frombuffer(self._map, dtype=np.uint8, count=tensor.n_bytes, offset=tensor.offset)
        step_blocks = max(1, CHUNK_ELEMENTS // block_elements)
        # One "row" per call keeps the package's inner loop (16 rows at a time) from dominating.
        with np.errstate(all="ignore"):  # a damaged scale may overflow; the caller looks for NaN and Inf
            for first in range(0, tensor.n_bytes // block_bytes, step_blocks):
                piece = raw[first * block_bytes : (first + step_blocks) * block_bytes]
                start = first * block_elements
                flat[start : start + piece.size // block_bytes * block_elements] = dequantize(
                    np.ascontiguousarray(piece)[None, :], kind
                ).reshape(-1)
        return out.reshape(tensor.shape)

    def close(self) -> None:
        """Unmaps the file; tensors that were read stay valid."""
        self._map.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_prologue(header: HeaderReader) -> tuple[int, int]:
    """(tensor count, key count) after magic and version are checked."""
    if header.take(4, "magic") != b"GGUF":
        raise GgufError(f"{header.file}: not a GGUF file (the first four bytes are not 'GGUF')")
    version = header.u32("version")
    if version & 0xFFFF == 0:
        raise GgufError(f"{header.file}: big-endian GGUF is not read; convert it with gguf-convert-endian")
    if version not in (2, 3):
        raise GgufError(f"{header.file}: GGUF version {version} is not read; versions 2 and 3 are")
    # The smallest directory line has a name length, a dimension count, one dimension, a type and an offset.
    n_tensors = read_count(header, "tensor count", MAX_TENSORS, least_bytes_each=32)
    n_keys = read_count(header, "metadata count", MAX_TENSORS, least_bytes_each=13)
    return n_tensors, n_keys


def _alignment(metadata: Metadata, file: str) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ALIGNMENT:
        raise GgufError(f"{file}: general.alignment is {value!r}; it must be within 1..{MAX_ALIGNMENT}")
    if value & (value - 1):
        raise GgufError(f"{file}: general.alignment is {value}, which is no power of two")
    return value


def _read_directory(header: HeaderReader, count: int, alignment: int) -> dict[str, GgufTensor]:
    relative = [_read_tensor_line(header) for _ in range(count)]
    data_start = -(-header.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for line in relative:
        tensor = GgufTensor(
            line.name, line.shape, line.ggml_type, data_start + line.offset, line.n_bytes, line.readable
        )
        if line.name in tensors:
            raise GgufError(f"{header.file}: tensor {line.name!r} is listed twice")
        if line.offset % alignment:
            raise GgufError(
                f"{header.file}: tensor {line.name!r} starts at {line.offset}, not a multiple of {alignment}"
            )
        if tensor.offset + tensor.n_bytes > header.size:
            raise GgufError(
                f"{header.file}: tensor {line.name!r} needs {tensor.n_bytes} bytes from {tensor.offset} on, "
                f"but the file ends at {header.size}; is the download complete?"
            )
        tensors[line.name] = tensor
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.n_bytes > after.offset:
            raise GgufError(f"{header.file}: tensors {before.name!r} and {after.name!r} overlap")
    return tensors


def _read_tensor_line(header: HeaderReader) -> GgufTensor:
    """One directory line, its offset still relative to the data section."""
    name = header.string("tensor name", MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    n_dims = header.u32(f"{what}, dimension count")
    if not 1 <= n_dims <= MAX_DIMS:
        raise GgufError(f"{header.file}: {what} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [header.u64(f"{what}, dimensions") for _ in range(n_dims)]
    type_id = header.u32(f"{what}, type")
    offset = header.u64(f"{what}, offset")
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError:
        raise GgufError(f"{header.file}: {what} has the unknown ggml type {type_id}") from None
    block_elements, block_bytes = GGML_QUANT_SIZES[kind]
    if min(dims) < 1 or prod(dims) > header.size * block_elements:
        raise GgufError(f"{header.file}: {what} claims the shape {dims[::-1]}, which the file cannot hold")
    if dims[0] % block_elements:
        raise GgufError(
            f"{header.file}: {what} has rows of {dims[0]} values, not a multiple of the "
            f"{block_elements} of a {kind.name} block"
        )
    n_bytes = prod(dims) // block_elements * block_bytes
    return GgufTensor(name, tuple(dims[::-1]), kind.name, offset, n_bytes, kind.name in _READABLE_NAMES)
