"""Rows of an embedding table. Knows the layout of 8-bit tables on disk, not vocabularies."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(table: Tensor, scales: Tensor | None, ids: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """Rows of a table by index, as numbers.

    Args:
        table: [V, D] of a floating dtype; or int8 [V, D] codes, natural order.
        scales: bfloat16 [V, D/g] for int8 codes, None otherwise.
        ids: int64 [T], 0 to V - 1.
        factor: the rows are multiplied by it, after their rounding to `dtype` and in the wider of it and float32.
        dtype: of the activations, to which a value is rounded before it meets the factor.

    Returns:
        [T, D] in the wider of `dtype` and float32: the residual stream's beginning.
    """
    rows = table[ids.to(table.device)]
    wide = torch.promote_types(dtype, torch.float32)
    if scales is not None:
        steps = scales[ids.to(table.device)].to(wide)
        rows = rows.to(wide) * steps.repeat_interleave(table.shape[1] // scales.shape[1], dim=1)
    return rows.to(ids.device).to(dtype).to(wide) * factor
