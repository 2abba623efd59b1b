"""How fast a session comes back from the disk, beside reading the same bytes. Its memory is made up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from salalocal.cache.compressed_keys import fine_and_coarse
from salalocal.cache.kv_store import KVCache, KVStore
from salalocal.cache.manifest import ModelIdentity, read_manifest
from salalocal.cache.saved_session import read_session
from salalocal.cache.session_cache import SessionCache
from salalocal.engine.session_files import Contents, SessionFiles
from salalocal.saved_size import CHECKPOINT_EVERY_TOKENS
from salalocal.sparse_config import SparseConfig

# The released model's: 8 attention layers with 2 kv heads of 128, 24 linear layers with 32 heads of 128.
_ATTENTION_LAYERS, _KV_HEADS, _LINEAR_LAYERS, _HEADS, _DIM = 8, 2, 24, 32, 128
_SPARSE = SparseConfig(32, 16, 1, 64, 2048, 64, 8192)
_VOCAB = 73448
_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class SessionTimes:
    """Seconds for one session.

    Attributes:
        tokens: it holds.
        nbytes: of its files.
        save_seconds: until all of it is on the disk.
        read_seconds: for reading its files, one after the other, into fresh memory; the best of several times.
        restore_seconds: for restoring it, every byte checked; the best as well.
        is_cold: whether the files were put out of the system's memory before each.
    """

    tokens: int
    nbytes: int
    save_seconds: float
    read_seconds: float
    restore_seconds: float
    is_cold: bool

    @property
    def ratio(self) -> float:
        """Restoring over reading."""
        return self.restore_seconds / self.read_seconds


def time_session(tokens: int, folder: Path, repeats: int = 3) -> list[SessionTimes]:
    """Saves a session of the released model's shape in bfloat16, and restores it.

    Args:
        tokens: that it holds, at least 1.
        folder: where its files go and stay.
        repeats: of reading and restoring.

    Returns:
        Times with the files in the system's memory, and where the system can put them out of it, without.
    """
    cache = _empty()
    cache.make_room(tokens)
    cache.commit(tokens, [torch.randn_like(state) for state in cache.states])
    checkpoints = []
    for position in range(CHECKPOINT_EVERY_TOKENS, tokens, CHECKPOINT_EVERY_TOKENS):
        cache.length = position
        checkpoints.append(cache.checkpoint(torch.randn(_VOCAB)))
    cache.length = tokens
    for tensor in cache.tokens(0, tokens).values():
        # Drawing so many random numbers would take longer than all the rest.
        tensor.view(torch.int16).copy_(torch.randint(-(2**15), 2**15, tensor.shape[-2:], dtype=torch.int16))
    files = SessionFiles(folder, ModelIdentity("timed", "0", "bfloat16"))
    started = time.perf_counter()
    files.write(files.plan(Contents(cache, [1] * tokens, torch.randn(_VOCAB), checkpoints)))
    save_seconds = time.perf_counter() - started
    del cache, checkpoints
    paths = [folder / name for name in sorted(read_manifest(folder)[0].file_names)]
    nbytes = sum(path.stat().st_size for path in paths)
    rows = []
    for is_cold in (False, True) if hasattr(os, "posix_fadvise") else (False,):
        prepare = partial(_forget if is_cold else _touch, paths)
        read = min(_seconds(partial(_read, paths), prepare) for _ in range(repeats))
        restore = min(_seconds(partial(_restore, folder), prepare) for _ in range(repeats))
        rows.append(SessionTimes(tokens, nbytes, save_seconds, read, restore, is_cold))
    return rows


def _empty() -> SessionCache:
    device, dtype = torch.device("cpu"), torch.bfloat16
    store = KVStore(_ATTENTION_LAYERS, _KV_HEADS, _DIM, _SPARSE.block_size, dtype, device)
    compressed = [fine_and_coarse(_SPARSE, _KV_HEADS, _DIM, dtype, device) for _ in range(_ATTENTION_LAYERS)]
    states = [torch.zeros(_HEADS, _DIM, _DIM) for _ in range(_LINEAR_LAYERS)]
    return SessionCache(KVCache(store), [*compressed], states, 0)


def _restore(folder: Path) -> object:
    manifest, _ = read_manifest(folder)
    cache = _empty()
    return cache, read_session(folder, manifest, cache, torch.empty(_VOCAB))


def _read(paths: Sequence[Path]) -> object:
    """Into memory that was not used before, as a restored session's is not either."""
    memory = np.zeros(sum(path.stat().st_size for path in paths), dtype=np.uint8)
    target, at = memory.data, 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(target[at : at + _READ_BYTES]):
                at += count
    return memory


def _seconds(call: Callable[[], object], prepare: Callable[[], None]) -> float:
    prepare()
    started = time.perf_counter()
    result = call()
    taken = time.perf_counter() - started
    # Giving the memory back is not part of it.
    del result
    return taken


def _touch(paths: Sequence[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass


def _forget(paths: Sequence[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
