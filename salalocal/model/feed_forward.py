"""The SwiGLU feed-forward. Knows no norms and no residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_quant import Projections, Weight

# Tokens at once: gate and up of a long chunk would be the largest tensors of the whole network. Fewer would unpack
# packed matrices more often than once for a chunk of the default size.
_SLICE_TOKENS = 8192


@dataclass(frozen=True)
class FeedForward:
    """Weights of one feed-forward: W_down(silu(W_gate u) * (W_up u)).

    Attributes:
        gate_up: W_gate and W_up.
        down_proj: W_down.
    """

    gate_up: Projections
    down_proj: Weight

    def __call__(self, u: Tensor) -> Tensor:
        """u [T, h] -> [T, h], in slices of tokens."""
        slices = [self.gate_up.feed(part, self.down_proj) for part in torch.split(u, _SLICE_TOKENS)]
        return slices[0] if len(slices) == 1 else torch.cat(slices)

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """Every weight matrix."""
        return (*self.gate_up.weights, self.down_proj)
