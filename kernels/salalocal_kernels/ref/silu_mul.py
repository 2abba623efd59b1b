"""The middle of a SwiGLU feed-forward: one half gates the other. Knows no products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from salalocal_kernels.ref.quantize_tokens import quantize_tokens


def silu_mul(gate: Tensor, up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, where silu(x) = x / (1 + exp(-x)).

    Args:
        gate: [T, N], any float dtype.
        up: [T, N], dtype of gate; both may be halves of one [T, 2 N].
        out: [T, N], dtype of gate, where the result goes: columns of a larger one, say. None: a new one.

    Returns:
        [T, N], dtype of gate.
    """
    return torch.mul(functional.silu(gate), up, out=out)


def silu_mul_codes(gate: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`silu_mul`, computed in at least float32, as `quantize_tokens` rounds it: what has no use but an 8-bit product.

    Args:
        gate, up: as for `silu_mul`.
        dtype: int8 or float8_e4m3fn.

    Returns:
        Codes [T, N] of `dtype`, and scales [T] float32.
    """
    wide = torch.promote_types(gate.dtype, torch.float32)
    return quantize_tokens(silu_mul(gate.to(wide), up.to(wide)), dtype)
