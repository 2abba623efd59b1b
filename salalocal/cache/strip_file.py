"""Tensors in safetensors files of a layout known beforehand, checksummed strip by strip. Knows no sessions.

The header follows from names, dtypes and shapes, so a file whose header is not exactly the expected one is refused
before anything of it is read. A strip is what lies in a row in memory: a tensor's last two dimensions. Its CRC-32
is kept by whoever keeps the file's name.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from salalocal.errors import BadSession

_WORDS = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}
_ALIGNMENT = 8
# Read by one thread in a row. Checking takes a core as long as reading does, so several threads share the work.
_BATCH_BYTES = 16 << 20
_MAX_THREADS = 8
# Checked while it is still in the core's own cache.
_PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class Strip:
    """Bytes of a file and where they go.

    Attributes:
        path: the file.
        offset: from its beginning.
        target: contiguous, of as many bytes; written to by `read_strips`.
        checksum: CRC-32 of the bytes.
    """

    path: Path
    offset: int
    target: Tensor
    checksum: int


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Writes a new file and flushes it to the disk.

    Args:
        path: not there yet.
        tensors: by name; at least one dimension, of dtype float64, float32, bfloat16 or int32.

    Returns:
        The CRC-32 of every strip, for `plan_reading`.

    Raises:
        OSError: it cannot be written; what there is of it stays.
    """
    checksums = []
    with path.open("xb", buffering=0) as file:
        _write(file, memoryview(_header(tensors)))
        for tensor in tensors.values():
            for strip in _strips(tensor):
                data = _bytes(strip.cpu().contiguous())
                checksums.append(zlib.crc32(data))
                _write(file, data)
        os.fsync(file.fileno())
    return tuple(checksums)


def plan_reading(path: Path, targets: Mapping[str, Tensor], checksums: Sequence[int]) -> list[Strip]:
    """Where every strip of `path` goes; header and size are checked here, the strips by `read_strips`.

    Args:
        path: a file of `write_tensors`.
        targets: as they were given to `write_tensors`, of the same dtypes and shapes, last two dimensions in a row.
        checksums: what it returned.

    Raises:
        BadSession: the file is missing, truncated or not the one that was written.
    """
    header = _header(targets)
    size = len(header) + sum(tensor.nbytes for tensor in targets.values())
    try:
        with path.open("rb") as file:
            found = file.read(len(header))
            found_size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise BadSession(f"{path}: is missing; the documents must be read again") from None
    except OSError as error:
        raise BadSession(f"{path}: cannot be read ({error.strerror or error})") from error
    if found_size != size:
        raise BadSession(f"{path}: has {found_size:,} bytes instead of {size:,}; the documents must be read again")
    strips = [strip for tensor in targets.values() for strip in _strips(tensor)]
    if found != header or len(strips) != len(checksums):
        raise BadSession(f"{path}: its header is not that of this session; the documents must be read again")
    offsets = itertools.accumulate((strip.nbytes for strip in strips), initial=len(header))
    return [Strip(path, *each) for each in zip(offsets, strips, checksums, strict=False)]


def read_strips(strips: Sequence[Strip]) -> None:
    """Reads strips straight into their targets, several at a time, and checks each.

    Raises:
        BadSession: bytes are not those that were written; the targets hold anything.
    """
    batches = list(_batches(strips))
    threads = min(_MAX_THREADS, os.cpu_count() or 1, len(batches))
    if threads <= 1:
        for batch in batches:
            _read_batch(batch)
        return
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(_read_batch, batch) for batch in batches]
        try:
            for each in running:
                each.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _batches(strips: Sequence[Strip]) -> Iterator[list[Strip]]:
    """Cut where the file changes and after every `_BATCH_BYTES`."""
    for _, same in itertools.groupby(strips, key=lambda strip: strip.path):
        batch: list[Strip] = []
        for strip in same:
            batch.append(strip)
            if sum(each.target.nbytes for each in batch) >= _BATCH_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch


def _read_batch(strips: list[Strip]) -> None:
    path = strips[0].path
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(strips[0].offset)
            for strip in strips:
                target = strip.target
                on_host = target if target.device.type == "cpu" else torch.empty(target.shape, dtype=target.dtype)
                data = _bytes(on_host)
                done = checksum = 0
                while done < len(data) and (count := file.readinto(data[done : done + _PIECE_BYTES])):
                    checksum = zlib.crc32(data[done : done + count], checksum)
                    done += count
                if done < len(data) or checksum != strip.checksum:
                    raise BadSession(
                        f"{path}: is damaged at bytes {strip.offset:,} to {strip.offset + len(data):,}; the documents "
                        "must be read again"
                    )
                if on_host is not target:
                    target.copy_(on_host)
    except OSError as error:
        raise BadSession(f"{path}: cannot be read ({error.strerror or error})") from error


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _strips(tensor: Tensor) -> Iterator[Tensor]:
    """The parts of the last two dimensions, in order."""
    for index in itertools.product(*(range(size) for size in tensor.shape[:-2])):
        yield tensor[index]


def _bytes(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    assert tensor.is_contiguous()
    return tensor.flatten().view(torch.uint8).numpy().data


def _write(file: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) or 0 :]
