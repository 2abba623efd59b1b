"""Muon for weight matrices, AdamW for the embedding and the norms, and the learning-rate curve.

Muon: momentum, then the nearest orthogonal matrix by five Newton-Schulz steps (Keller Jordan, 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 0.02
OTHER_RATE = 0.004
MOMENTUM = 0.95
WEIGHT_DECAY = 0.01
WARM_UP_STEPS = 80
DECAY_FROM = 0.55
FINAL_RATE = 0.03


def rate_factor(step: int, progress: float, warm_up_steps: int = WARM_UP_STEPS) -> float:
    """Linear rise over the first steps, flat, then linear fall from DECAY_FROM of the run to its end."""
    rise = min(1.0, (step + 1) / warm_up_steps)
    fall = min(1.0, max(0.0, (1 - progress) / (1 - DECAY_FROM)))
    return rise * max(FINAL_RATE, fall)


def orthogonal(gradient: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal factor of each matrix of gradient [n, rows, columns], approximately, in bf16."""
    x = gradient.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result


class Optimizer:
    """Both optimizers over one network."""

    def __init__(self, network: nn.Module) -> None:
        named = dict(network.named_parameters())
        is_matrix = {
            name: p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name for name, p in named.items()
        }
        self._groups: dict[tuple[int, ...], list[Tensor]] = {}
        for name, parameter in named.items():
            if is_matrix[name]:
                self._groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self._momenta = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()
        }
        self._others: list[Tensor] = [parameter for name, parameter in named.items() if not is_matrix[name]]
        self._adam = torch.optim.AdamW(self._others, lr=OTHER_RATE, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Apply the gradients at `factor` of the full rates and clear them; with a NaN in one, all count as zero."""
        parameters = (*self._others, *_flat(self._groups.values()))
        finite = torch.stack([_gradient(parameter).isfinite().all() for parameter in parameters]).all()
        for parameter in parameters:
            # Nothing here waits for the device; weights with a NaN in them could not be trained on.
            parameter.grad = torch.where(finite, _gradient(parameter), 0.0)
        torch.nn.utils.clip_grad_norm_(self._others, 1.0)
        for shape, group in self._groups.items():
            gradient = torch.stack([_gradient(parameter) for parameter in group])
            momentum = self._momenta[shape].lerp_(gradient, 1 - MOMENTUM)
            update = orthogonal(gradient.lerp(momentum, MOMENTUM)).float() * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(group, 1 - factor * MATRIX_RATE * WEIGHT_DECAY)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-factor * MATRIX_RATE)
        for entry in self._adam.param_groups:
            entry["lr"] = OTHER_RATE * factor
        self._adam.step()
        for parameter in parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"momenta": list(self._momenta.values()), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier run of the same network."""
        for mine, saved in zip(self._momenta.values(), state["momenta"], strict=True):
            mine.copy_(saved)
        self._adam.load_state_dict(state["adam"])


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _flat(groups: Iterable[list[Tensor]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group]
