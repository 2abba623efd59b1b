"""The SwiGLU feed-forward. Knows no norms and no residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.planner import SLICE_TOKENS
from salalocal_quant import Projections, Weight


@dataclass(frozen=True)
class FeedForward:
    """Weights of one feed-forward: W_down(silu(W_gate u) * (W_up u)).

    Attributes:
        gate_up: W_gate and W_up.
        down_proj: W_down.
        slice_tokens: taken at once: gate and up of a long chunk would be the largest tensors of the whole network.
        channels: of gate and up that are there at once where memory is short; None for all.
    """

    gate_up: Projections
    down_proj: Weight
    slice_tokens: int = SLICE_TOKENS
    channels: int | None = None

    def __call__(self, u: Tensor) -> Tensor:
        """u [T, h] -> [T, h], in slices of tokens."""
        if len(u) <= self.slice_tokens:
            return self.gate_up.feed(u, self.down_proj, self.channels)
        out = torch.empty_like(u)
        for part, of in zip(torch.split(u, self.slice_tokens), torch.split(out, self.slice_tokens), strict=True):
            of.copy_(self.gate_up.feed(part, self.down_proj, self.channels))
        return out

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """Every weight matrix."""
        return (*self.gate_up.weights, self.down_proj)
