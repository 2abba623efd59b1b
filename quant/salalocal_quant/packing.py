"""Codes of 4 bits in 32-bit words. Knows bits, not what a code means.

Element k of a row stands in bits 4*(k % 8) of word k // 8: natural order along the row. Words are little-endian in
files and in memory (every machine this runs on is little-endian), so byte j of a row holds element 2j in its low half
and element 2j+1 in its high half.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES_PER_WORD = 8


class PackedError(ValueError):
    """Packed tensors, or a matrix to be packed, are not what the format needs; the message names which and why."""


def pack_int4(codes: Tensor) -> Tensor:
    """Packs eight codes into a word.

    Args:
        codes: [N, K] uint8 within 0..15, K a multiple of 8.

    Returns:
        [N, K/8] int32, contiguous.
    """
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).contiguous().view(torch.int32)


def unpack_int4(words: Tensor) -> Tensor:
    """Undoes `pack_int4`: words [N, K/8] int32, contiguous -> [N, K] uint8 within 0..15."""
    pairs = words.view(torch.uint8)
    return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
