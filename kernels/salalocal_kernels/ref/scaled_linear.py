"""y = x W^T where both are 8-bit codes under scales. Knows no packed layouts."""

from __future__ import annotations

import torch
from torch import Tensor


def scaled_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies rows of codes by a matrix of codes.

        y[t, n] = x_scales[t] * sum over groups of weight_scales[n, group] * sum over k in group of x[t, k] weight[n, k]

    Args:
        x: [T, K] int8 or float8_e4m3fn.
        x_scales: [T] float32.
        weight: [N, K], dtype of x.
        weight_scales: [N] float32, a scale for each channel; or [N, K/g] bfloat16, one for each group along K.
        dtype: of the result.

    Returns:
        [T, N]; here computed in float64.
    """
    scales = weight_scales.double().reshape(weight.shape[0], -1)
    values = weight.double() * scales.repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
    return ((x.double() @ values.T) * x_scales.double()[:, None]).to(dtype)
