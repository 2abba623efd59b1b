"""The inputs of the next decode step from those of this one. Knows no network."""

from __future__ import annotations

from torch import Tensor


def advance(inputs: Tensor, chosen: Tensor, told: Tensor) -> None:
    """Overwrites the inputs of a step by those of the next: the chosen token, one position and one draw further.

    It also tells the host what was chosen, so that this is there once the step has ended.

    Args:
        inputs: int64 [5]: token, position, seed, count of draws before, and the length with the token.
        chosen: int64 [1]; a token below 0, which says that there is none, becomes token 0.
        told: int64 [1], overwritten by `chosen` as it is; on the device of `inputs` or in pinned memory of the host.
    """
    told.copy_(chosen, non_blocking=True)
    inputs[0:1] = chosen.clamp(min=0)
    inputs[1::2] += 1
    inputs[4:] += 1
