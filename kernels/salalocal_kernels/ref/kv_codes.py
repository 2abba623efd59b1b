"""K and V in 8 bits as host memory keeps them: strips of codes, and for every token's key and value the largest number.

A strip is one page of one kv head, 2 B (D + 2) bytes: the codes of K and V [2, B, D], then of each row its largest
magnitude in bfloat16, [2, B]. Everything is computed in float32, one rounding after the other, so that all who round
or read a row come to the same bits. Numbers out of a strip, rounded once more, are the same numbers. Knows no pages'
places.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a row's largest number becomes.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
# Rows with nothing above are zeros.
LEAST = 2.0**-100


def strip_bytes(block_size: int, dim: int) -> int:
    """Bytes of a page of one kv head."""
    return 2 * block_size * (dim + 2)


def pack_pages(pages: Tensor, codes: torch.dtype) -> Tensor:
    """Rounds every row to nearest, its largest magnitude, itself rounded to bfloat16, to the largest of `codes`.

    Args:
        pages: [n, Hkv, 2, B, D], float.
        codes: int8 or float8_e4m3fn.

    Returns:
        uint8 [n, Hkv, 2 B (D + 2)].
    """
    wide = pages.float()
    largest = wide.abs().amax(-1).bfloat16()
    largest = torch.where(largest < LEAST, 0, largest)
    scale = (largest.float() * (1 / LARGEST[codes]))[..., None]
    steps = wide * torch.where(scale > 0, 1 / scale, 0)
    if codes == torch.int8:
        steps = steps.round()
    return torch.cat([steps.to(codes).view(torch.uint8).flatten(-3), largest.view(torch.uint8).flatten(-2)], -1)


def unpack_pages(strips: Tensor, codes: torch.dtype, pages: Tensor) -> None:
    """Writes the numbers of strips into pages.

    Args:
        strips: uint8 [n, Hkv, 2 B (D + 2)], each row contiguous.
        codes: int8 or float8_e4m3fn.
        pages: [n, Hkv, 2, B, D], float; written to.
    """
    split = 2 * pages.shape[-2] * pages.shape[-1]
    values = strips[..., :split].view(codes).reshape(pages.shape).float()
    largest = strips[..., split:].view(torch.bfloat16).reshape(pages.shape[:-1]).float()
    pages.copy_(values * (largest * (1 / LARGEST[codes]))[..., None])
