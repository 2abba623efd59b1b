"""Packed weights as GPU kernels read them: the codes of a group in planes. Knows bits and scales, not files.

On disk eight neighbouring codes of 4 bits (four of 8) share a word, so a thread that reads words gets neighbours in one
register and must fetch eight neighbouring activations for it. In planes word i of a group's `span` words holds elements
i, span + i, 2 span + i, ... of the group: codes in the same place of neighbouring words are neighbours, and so are the
activations they meet and the values they unpack to.

    bits 4:  span = g/8,  element j*span + i in bits 4j .. 4j+3 of word i
    bits 8:  span = g/4,  element j*span + i in bits 8j .. 8j+7 of word i, as code + 128
    value = (code - zero) * scale;  zero is 8 or 128 where the matrix has no zero points
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of codes that are rearranged at once.
_SLICE_BYTES = 4 << 20


@dataclass(frozen=True)
class Planes:
    """A matrix [N, K] of codes in planes.

    Attributes:
        words: int32 [N, K*bits/32], contiguous.
        scales: bfloat16 [N, K/group_size], contiguous.
        zeros: uint8 [N, K/group_size], contiguous; None where every zero point is the middle code.
        bits: 4 or 8.
        group_size: 64 or 128.
    """

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.words.shape[0], self.words.shape[1] * (32 // self.bits)

    @property
    def device(self) -> torch.device:
        """Where the matrix is."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory, the same as on disk."""
        return self.words.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)


def to_planes(
    qweight: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int, device: torch.device | None = None
) -> Planes:
    """Rearranges a matrix from the layout on disk, once, when it is loaded.

    Args:
        qweight: int32 [N, K/8], element k in bits 4*(k % 8) of word k // 8; or int8 [N, K], -127 to 127.
        scales: bfloat16 [N, K/group_size].
        zeros: uint8 [N, K/group_size], 0 to 15, or None.
        group_size: elements of a row that share a scale: 64 or 128.
        device: where the planes shall be; None for where the matrix is. Of the matrix only a few rows at a time are
            there.
    """
    device, bits = device or qweight.device, 4 if qweight.dtype == torch.int32 else 8
    words = torch.empty(qweight.shape[0], scales.shape[1] * group_size * bits // 32, dtype=torch.int32, device=device)
    step = max(1, _SLICE_BYTES // max(1, 4 * words.shape[1]))
    for start in range(0, len(words), step):
        taken = slice(start, start + step)
        words[taken] = _words(qweight[taken].to(device), scales.shape[1], group_size, bits)
    there = zeros if zeros is None else zeros.to(device).contiguous()
    return Planes(words, scales.to(device).contiguous(), there, bits, group_size)


def _words(qweight: Tensor, groups: int, group_size: int, bits: int) -> Tensor:
    """int32 [rows, K*bits/32] of some rows."""
    rows, planes = qweight.shape[0], 32 // bits
    if bits == 4:
        pairs = qweight.contiguous().view(torch.uint8)
        codes = torch.stack((pairs & 15, pairs >> 4), dim=-1)
    else:
        codes = qweight.contiguous().view(torch.uint8) ^ 128
    words = codes.reshape(rows, groups, planes, group_size // planes).transpose(2, 3).contiguous()
    if bits == 4:
        words = words[..., 0::2] | (words[..., 1::2] << 4)
    return words.reshape(rows, groups * group_size * bits // 8).view(torch.int32)


def plane_steps(matrix: Planes) -> Tensor:
    """Steps from zero, code - zero: int16 [N, K] in natural order."""
    rows, columns = matrix.shape
    fields = matrix.words.view(torch.uint8).to(torch.int16)
    if matrix.bits == 4:
        fields = torch.stack((fields & 15, fields >> 4), dim=-1)
    planes = 32 // matrix.bits
    groups = columns // matrix.group_size
    codes = fields.reshape(rows, groups, matrix.group_size // planes, planes).transpose(2, 3)
    zeros = 1 << (matrix.bits - 1) if matrix.zeros is None else matrix.zeros.to(torch.int16)[..., None]
    return (codes.reshape(rows, groups, matrix.group_size) - zeros).reshape(rows, columns)


def plane_values(matrix: Planes, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Values [N, K]: exact products, rounded once.

    Args:
        matrix: [N, K].
        dtype: of the values.
        out: [N, K] of that dtype to write to, rows of adjacent numbers; a new tensor without it.
    """
    steps = plane_steps(matrix).to(torch.promote_types(dtype, torch.float32))
    scales = matrix.scales.to(steps.dtype)
    values = (steps.reshape(*scales.shape, matrix.group_size) * scales[..., None]).reshape(steps.shape).to(dtype)
    return values if out is None else out.copy_(values)


def plane_codes(matrix: Planes, row_scales: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The matrix once more in 8 bits, with one scale for a row instead of one for each group.

    Args:
        matrix: [N, K].
        row_scales: [N] float32, no less than the row's largest magnitude over the largest number of `dtype`; 0 only
            where the whole row is.
        dtype: int8 or float8_e4m3fn.
        out: [N, K] of that dtype to write to, rows of adjacent numbers; a new tensor without it.

    Returns:
        Codes [N, K], the nearest to value / row scale in float32.
    """
    inverse = torch.where(row_scales > 0, 1 / row_scales, 0)
    steps = plane_values(matrix, torch.float32) * inverse[:, None]
    codes = (steps.round() if dtype == torch.int8 else steps).to(dtype)
    return codes if out is None else out.copy_(codes)
