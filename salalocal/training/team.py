"""Several processes, one GPU each, that train one network: who is who, shared gradients, shared decisions.

Started by `torchrun`; a process started without it is a team of one. Knows no network and no data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """`size` processes; this one is number `rank` of all and uses GPU `local_rank` of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _decisions: Any = field(default=None, repr=False)

    @staticmethod
    def join() -> Team:
        """The team that torchrun's environment describes; waits until all are there."""
        if "WORLD_SIZE" not in os.environ:
            return Team()
        local_rank = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        # Decisions travel over the CPU, so that none of them waits for the GPU's queue.
        return Team(dist.get_rank(), dist.get_world_size(), local_rank, dist.new_group(backend="gloo"))

    @staticmethod
    def size_by_environment() -> int:
        """How many processes torchrun started; known before they meet."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @staticmethod
    def rank_by_environment() -> int:
        """This process's number; known before they meet."""
        return int(os.environ.get("RANK", "0"))

    def agree(self, *values: float) -> list[float]:
        """The values that the first process has."""
        told = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.broadcast(told, 0, group=self._decisions)
        return told.tolist()

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the team. A parameter without one takes part with zeros."""
        if self.size == 1:
            return
        grads = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grads.append(parameter.grad)
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.size
        at = 0
        for grad in grads:
            grad.copy_(flat[at : at + grad.numel()].view_as(grad))
            at += grad.numel()

    def leave(self) -> None:
        """Wait for the others and end the team."""
        if self.size > 1:
            dist.barrier(group=self._decisions)
            dist.destroy_process_group()
