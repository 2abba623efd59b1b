"""`salalocal.plan`: a plan for this machine, or for a GPU that is not here. Loads no torch and allocates nothing.

Knows where a model would run and what is free there, from the system and from nvidia-smi; sizes and times are those of
`forecast`.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil

from salalocal import machine
from salalocal.config import ModelConfig
from salalocal.errors import InvalidRequest
from salalocal.forecast import Place, Plan, make_plan
from salalocal.hub import find_config
from salalocal.kv_tiers import check_kv
from salalocal.planner import usable_bytes, usable_gpu_bytes

_MOST_TOKENS = 1 << 30
_ITEM_BYTES = {"bfloat16": 2, "float32": 4}
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 20


def plan(path_or_name: str | Path, context_tokens: int, gpu_memory: int | None = None, kv: str = "full") -> Plan:
    """Whether a model and a context fit into memory, what else would, and how long reading takes.

    Nothing is loaded, downloaded or measured: times are there where `salalocal bench machine` was run on the device.

    Args:
        path_or_name: as for `load`, but a folder with config.json alone is enough, and so is the hub id of a released
            model.
        context_tokens: to be read.
        gpu_memory: bytes of a GPU, here or not; None: what is free here, on the GPU where there is one.
        kv: how K and V in main memory are kept, as for `load`.

    Raises:
        ModelNotFound, BadConfig, UnsupportedFormat: as `load`.
        InvalidRequest: context_tokens or gpu_memory is out of range, kv is not known, or in 8 bits where all K and V
            are on the device.
    """
    if not 1 <= context_tokens <= _MOST_TOKENS:
        raise InvalidRequest(f"context_tokens is {context_tokens:,}; 1 to {_MOST_TOKENS:,} can be planned for")
    if gpu_memory is not None and gpu_memory < 1:
        raise InvalidRequest(f"gpu_memory is {gpu_memory:,}; give the bytes of a GPU, or leave it out")
    check_kv(kv)
    config = read_config(find_config(str(path_or_name)))
    return make_plan(config, context_tokens, replace(_place(gpu_memory), kv=kv))


def read_config(path: Path) -> ModelConfig:
    """The config of what `find_config` found.

    Raises:
        BadConfig, UnsupportedFormat: it is none.
    """
    if path.suffix == ".json":
        return ModelConfig.from_json(path)
    # Reading such a header takes torch, which no other plan needs.
    from salalocal.weights.gguf_source import GgufSource

    return GgufSource(path).config


@dataclass(frozen=True)
class _Card:
    """An NVIDIA GPU as nvidia-smi tells of it."""

    name: str
    free_bytes: int


def _place(gpu_memory: int | None) -> Place:
    card = _card()
    if card is None and gpu_memory is None:
        name = machine.processor_name()
        known = machine.recall("cpu", name)
        dtype = _processor_dtype() if known is None else known.dtype
        free = usable_bytes(psutil.virtual_memory().available)
        return Place(False, _ITEM_BYTES[dtype], free, None if known is None else known.rates)
    known = None if card is None else machine.recall("cuda", card.name)
    card_bytes = gpu_memory if gpu_memory is not None else card.free_bytes if card else 0
    # Without a cap `load` keeps all K/V on the card.
    host = None if gpu_memory is None else usable_bytes(psutil.virtual_memory().available)
    rates = None if known is None else known.rates
    return Place(True, _ITEM_BYTES["bfloat16"], usable_gpu_bytes(card_bytes), rates, host)


def _card() -> _Card | None:
    """The GPU that `load` would take; None without one, or where torch could not use it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        if not visible or visible.startswith("-") or metadata.version("torch").endswith("+cpu"):
            return None
        query = (*_QUERY, f"--id={visible}")
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_QUERY_SECONDS).stdout
        name, free = told.splitlines()[0].rsplit(",", 1)
        return _Card(name.strip(), int(free) << 20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, metadata.PackageNotFoundError):
        return None


def _processor_dtype() -> str:
    """What `load` takes by itself on this processor."""
    return "bfloat16" if "avx512_bf16" in machine.processor_facts() else "float32"
