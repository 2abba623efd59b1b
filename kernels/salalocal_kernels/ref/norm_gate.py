"""What linear attention's output goes through before its projection: a norm over all heads, then a gate."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal_kernels.ref.rms_norm import rms_norm


def norm_gate(x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float) -> Tensor:
    """rms_norm(x; weight) * sigmoid(gate).

    This definition rounds after each of the steps, as the network's separate operations do; an implementation may keep
    what lies between them in float32.

    Args:
        x: [T, C], the heads of a token side by side; float32 or the result's dtype.
        weight: [C]; None where the output has no norm.
        gate: [T, C], before the sigmoid; None where the output has no gate.
        eps: added to the mean square over all C channels.

    Returns:
        [T, C] in the gate's dtype, else the weight's, else x's. Source: the vendor's lightning layer.
    """
    if weight is not None:
        x = rms_norm(x, weight, eps)
    return x if gate is None else (x * torch.sigmoid(gate)).to(gate.dtype)
