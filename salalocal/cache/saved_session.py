"""Which tensors the files of a saved session hold, and the way back from them into memory. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from salalocal.cache.manifest import Manifest, ModelIdentity
from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.cache.strip_file import Strip, plan_reading, read_strips
from salalocal.errors import BadSession


def token_tensors(cache: SessionCache, ids: Tensor, start: int, stop: int) -> dict[str, Tensor]:
    """What a token file holds of the tokens [start, stop).

    Args:
        cache: where K/V and compressed keys are, or where there is room for them.
        ids: int32 [stop - start] on the CPU.
        start, stop: as for `SessionCache.tokens`.
    """
    return {"ids": ids, **cache.tokens(start, stop)}


def state_tensors(states: Iterable[Tensor], logits: Tensor | None) -> dict[str, Tensor]:
    """What a state file holds: states [H, Dk, Dv] as [H Dk, Dv], and logits [V] where they are known."""
    found = {f"state.{index}": state.flatten(0, 1) for index, state in enumerate(states)}
    return found if logits is None else {**found, "logits": logits}


def check_model(folder: Path, manifest: Manifest, model: ModelIdentity, block_size: int) -> None:
    """Raises BadSession if `model` is not the one that read the session."""
    saved = manifest.model
    if saved.fingerprint != model.fingerprint or manifest.block_size != block_size:
        raise BadSession(
            f"{folder}: the session was read by another model ({saved.name}), and its memory means nothing to "
            f"{model.name}; load that model, or read the documents again"
        )
    if saved.dtype != model.dtype:
        raise BadSession(
            f"{folder}: the session was read in {saved.dtype}, and {model.name} is loaded in {model.dtype}; load it "
            f"with dtype={saved.dtype!r}"
        )


def read_session(
    folder: Path, manifest: Manifest, cache: SessionCache, no_logits: Tensor
) -> tuple[list[int], list[Checkpoint]]:
    """Fills an empty cache with all that `folder` holds.

    Args:
        folder: where the files are.
        manifest: what is there; checked against the model.
        cache: of nothing, of the model's shape; on an error it must be thrown away.
        no_logits: [V], of the logits' dtype and device; not read.

    Returns:
        Token ids, and a checkpoint for every saved state by ascending position; the cache is at the last of them.

    Raises:
        BadSession: a file is missing, truncated or damaged.
    """
    ids = torch.zeros(manifest.length, dtype=torch.int32)
    cache.make_room(manifest.length)
    strips: list[Strip] = []
    for tokens in manifest.tokens:
        targets = token_tensors(cache, ids[tokens.start : tokens.stop], tokens.start, tokens.stop)
        strips += plan_reading(folder / tokens.name, targets, tokens.checksums)
        if not cache.gives_views:
            read_strips(strips)
            strips.clear()
            cache.keep_tokens(tokens.start, targets)
    checkpoints = []
    for saved in manifest.states:
        states = tuple(torch.empty_like(state) for state in cache.states)
        logits = torch.empty_like(no_logits) if saved.has_logits else None
        strips += plan_reading(folder / saved.name, state_tensors(states, logits), saved.checksums)
        checkpoints.append(Checkpoint(saved.position, states, logits))
    read_strips(strips)
    if checkpoints:
        cache.rewind(checkpoints[-1])
    return ids.tolist(), checkpoints
