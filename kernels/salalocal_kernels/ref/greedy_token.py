"""The likeliest token. Knows no sampling."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_token(logits: Tensor) -> Tensor:
    """The place of the largest logit; of equal ones the lowest.

    Args:
        logits: [V], any float dtype.

    Returns:
        int64 [1]; -1 where NaN or +Inf is among the logits, or nothing but -Inf.
    """
    return torch.where(logits.max().isfinite(), logits.argmax(keepdim=True), -1)
