"""Which weights go into which file of a packed model. Knows sizes only: no torch, no files.

Files are planned before anything is read, so that a second run after a kill plans the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from salalocal.config import ModelConfig
from salalocal.weights.layout import Module, module_bytes, modules

# A file is held in memory until it is written, and written anew when a run was killed in the middle of it.
SHARD_BYTES = 512 << 20
_STORED_ITEM_BYTES = 2  # what is not packed is stored in bfloat16


@dataclass(frozen=True)
class Shard:
    """One file: its name, and the weights in it in the network's order."""

    file: str
    modules: tuple[Module, ...]


def plan_shards(config: ModelConfig, limit_bytes: int) -> tuple[Shard, ...]:
    """Cuts a packed model into files of at most `limit_bytes`, between layers; a layer larger than that is one file.

    A model that fits into one file has the name of a single one.
    """
    files: list[list[Module]] = [[]]
    used = 0
    for _, layer in groupby(modules(config), key=_part):
        members = list(layer)
        size = sum(module_bytes(module, config, _STORED_ITEM_BYTES) for module in members)
        if used and used + size > limit_bytes:
            files.append([])
            used = 0
        files[-1] += members
        used += size
    if len(files) == 1:
        return (Shard("model.safetensors", tuple(files[0])),)
    return tuple(
        Shard(f"model-{number:05d}-of-{len(files):05d}.safetensors", tuple(members))
        for number, members in enumerate(files, 1)
    )


def _part(module: Module) -> str:
    """The embedding, a layer, the final norm or the head: what is never cut."""
    return ".".join(module.name.split(".")[:3])
