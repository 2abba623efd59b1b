"""One token through a lightning layer in one launch. The kernel is that of `lightning_decode`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from salalocal_kernels.gpu import lightning_decode


def lightning_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    table: Tensor | None,
    slopes: Tensor,
    scale: float,
    state: Tensor,
    out_weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    new_state: Tensor | None = None,
) -> Tensor:
    """The op of `ref/lightning_step.py`, same arguments and result, as `gpu/lightning_decode.py` limits them.

    Launches on one device must follow each other, as those of one stream or captured graph do: they share a counter.
    """
    arrived = _arrived(state.device)
    return lightning_decode.lightning_step(
        q, k, v, q_weight, k_weight, table, slopes, scale, state, out_weight, gate, eps, arrived, new_state
    )


@functools.cache
def _arrived(device: torch.device) -> Tensor:
    """[1] int32, the counter of programs that have finished; every launch leaves it 0."""
    return torch.zeros(1, dtype=torch.int32, device=device)
