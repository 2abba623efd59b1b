"""Rounds a matrix to integer codes in groups along its rows, with the scale that leaves the least squared error.

Knows numbers only: neither how codes are stored nor what the matrix is for. For every group a few scales are tried,
each first rounded to the bfloat16 in which it is stored; the one whose nearest codes leave the least squared error is
kept. Halves are rounded to even. The search works on slices of rows, so that its memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from salalocal_quant.packing import PackedError

# About 1 MB per float32 temporary: the whole search of a slice stays in a core's cache.
_SLICE_ELEMENTS = 1 << 18
_CLIP = tuple(1.0 - 0.03 * step for step in range(11))  # 1.00, 0.97, ..., 0.70
# A 4-bit code reaches one step further down than up. With a scale of either sign the group's largest value may take
# that step: 4 to 6 % less rms error than positive scales alone, on normal and on trained matrices.
_INT4_RATIOS = tuple(sign * ratio for ratio in _CLIP for sign in (1.0, -1.0))
# At 8 bits hardly anything is won by clipping (1 % of the error), and nothing below 0.9.
_INT8_RATIOS = (1.0, 0.98, 0.96, 0.94, 0.92, 0.9)
_ZERO_POINT_TOP = 15
_FLOAT32_BIAS, _FLOAT32_MANTISSA_BITS = 127, 23


def round_int4(matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes -8..7 and scales, value = code * scale; a scale may be negative.

    Args:
        matrix: [N, K] of a floating dtype, K a multiple of `group_size`.
        group_size: elements that share a scale.

    Returns:
        codes [N, K] int8, scales [N, K/group_size] bfloat16.

    Raises:
        PackedError: NaN or Inf in the matrix, or K no multiple of the group.
    """
    return _round_symmetric(matrix, group_size, -8, 7, _INT4_RATIOS)


def round_int8(matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes -127..127 and positive scales; otherwise as `round_int4`."""
    return _round_symmetric(matrix, group_size, -127, 127, _INT8_RATIOS)


def round_int4_zero_point(matrix: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0..15, scales and zero points, value = (code - zero) * scale; otherwise as `round_int4`.

    Returns:
        codes [N, K] uint8, scales [N, K/group_size] bfloat16, zeros [N, K/group_size] uint8 within 0..15.
    """
    codes, scales, zeros = [], [], []
    for groups, unit in _slices_of_groups(matrix, group_size):
        # Zero itself must have a code, so the range always reaches it.
        low = groups.amin(-1, keepdim=True).clamp_(max=0)
        reach = groups.amax(-1, keepdim=True).clamp_(min=0) - low
        best_error = torch.full_like(low, torch.inf)
        scale, zero = torch.zeros_like(low), torch.zeros_like(low)
        for ratio in _CLIP:
            tried = _as_stored(reach * (ratio / _ZERO_POINT_TOP))
            tried_zero = torch.round(-low * ratio / _divisor(tried)).clamp_(0, _ZERO_POINT_TOP)
            steps = _nearest(groups, tried).add_(tried_zero).clamp_(0, _ZERO_POINT_TOP).sub_(tried_zero)
            is_better, best_error = _compare(steps, tried, groups, best_error)
            scale, zero = torch.where(is_better, tried, scale), torch.where(is_better, tried_zero, zero)
        best = _nearest(groups, scale).add_(zero).clamp_(0, _ZERO_POINT_TOP)
        codes.append(best.to(torch.uint8).flatten(1))
        scales.append((scale * unit).to(torch.bfloat16).squeeze(-1))
        zeros.append(zero.to(torch.uint8).squeeze(-1))
    return torch.cat(codes), torch.cat(scales), torch.cat(zeros)


def _round_symmetric(
    matrix: Tensor, group_size: int, lowest: int, highest: int, ratios: Sequence[float]
) -> tuple[Tensor, Tensor]:
    codes, scales = [], []
    for groups, unit in _slices_of_groups(matrix, group_size):
        peak = groups.abs().amax(-1, keepdim=True)
        best_error = torch.full_like(peak, torch.inf)
        scale = torch.zeros_like(peak)
        for ratio in ratios:
            tried = _as_stored(peak * (ratio / -lowest))
            steps = _nearest(groups, tried).clamp_(lowest, highest)
            is_better, best_error = _compare(steps, tried, groups, best_error)
            scale = torch.where(is_better, tried, scale)
        codes.append(_nearest(groups, scale).clamp_(lowest, highest).to(torch.int8).flatten(1))
        scales.append((scale * unit).to(torch.bfloat16).squeeze(-1))
    return torch.cat(codes), torch.cat(scales)


def _slices_of_groups(matrix: Tensor, group_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """[N, K] in slices of rows: groups [rows, K/group_size, group_size] float32, each divided by its unit.

    A group's unit is the power of two near its largest value, so that no square in the search over- or underflows,
    and exact: dividing by it changes neither codes nor how scales are rounded.
    """
    columns = matrix.shape[1]
    if columns % group_size:
        raise PackedError(f"rows of {columns} values are no multiple of the group of {group_size}")
    for rows in torch.split(matrix, max(1, _SLICE_ELEMENTS // columns)):
        groups = rows.to(torch.float32).reshape(len(rows), -1, group_size)
        if not torch.isfinite(groups).all():
            raise PackedError("a value is NaN or Inf, or exceeds float32")
        exponent = torch.frexp(groups.abs().amax(-1, keepdim=True)).exponent
        # Made of its bits, because exp2 need not be exact; within 100 its inverse is a normal number too.
        unit = ((exponent.clamp(-100, 100) + _FLOAT32_BIAS) << _FLOAT32_MANTISSA_BITS).view(torch.float32)
        yield groups / unit, unit


def _as_stored(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).to(scale.dtype)


def _divisor(scale: Tensor) -> Tensor:
    """The scale, 1 where it is 0: there every value is 0."""
    return torch.where(scale == 0, 1.0, scale)


def _nearest(groups: Tensor, scale: Tensor) -> Tensor:
    return torch.round(groups / _divisor(scale))


def _compare(steps: Tensor, scale: Tensor, groups: Tensor, best_error: Tensor) -> tuple[Tensor, Tensor]:
    """Where `steps * scale` is nearer to the groups than the best so far, and the smaller error; changes `steps`."""
    error = steps.mul_(scale).sub_(groups).square_().sum(-1, keepdim=True)
    is_better = error < best_error
    return is_better, torch.where(is_better, error, best_error)
