"""y = x W^T. Knows nothing of packed weights; those multiply in salalocal_quant."""

from __future__ import annotations

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiplies rows by a weight matrix without bias.

    Args:
        x: [..., K], any float dtype.
        weight: [N, K], same dtype.

    Returns:
        [..., N], same dtype, accumulated in at least float32 by the backend.
    """
    return torch.nn.functional.linear(x, weight)
