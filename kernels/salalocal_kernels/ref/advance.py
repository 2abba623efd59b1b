"""The inputs of the next decode step from those of this one. Knows no network."""

from __future__ import annotations

from torch import Tensor


def advance(inputs: Tensor, chosen: Tensor) -> None:
    """Overwrites the inputs of a step by those of the next: the chosen token, one position and one draw further.

    Args:
        inputs: int64 [4]: token, position, seed, count of draws before.
        chosen: int64 [1]; a token below 0, which says that there is none, becomes token 0.
    """
    inputs[0:1] = chosen.clamp(min=0)
    inputs[1::2] += 1
