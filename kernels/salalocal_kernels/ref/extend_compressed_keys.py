"""Both levels of compressed keys of InfLLM-V2, kept up as tokens arrive."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal_kernels.ref.compress_keys import compress_keys


def extend_compressed_keys(
    pages: Tensor,
    page_table: Tensor,
    fine: Tensor,
    coarse: Tensor,
    first_position: int | Tensor,
    tokens: int,
    kernel_stride: int,
) -> None:
    """Writes every window that the tokens [first_position, first_position + tokens) have completed.

    Fine window j covers tokens [j, j + 2) * kernel_stride, coarse window j [4 j, 4 j + 8) * kernel_stride. Windows that
    were complete before, and room for those to come, are left as they are.

    Args:
        pages: [P, Hkv, 2, B, D] with the new tokens' keys in them.
        page_table: [N] int64, the page of each block, or [Hkv, N] where it differs between kv heads; only blocks with
            tokens of new windows are looked up.
        fine: [Hkv, C1, D], C1 at least the number of complete windows; dtype of pages; written to.
        coarse: [Hkv, C2, D], likewise.
        first_position: absolute position of the first new token; an int64 tensor of one element where only the device
            knows it (a captured graph), which this definition waits for.
        tokens: number of new tokens.
        kernel_stride: tokens between fine windows.

    Source: MiniCPM4 report (InfLLM-V2), compressed keys; means in at least float32, rounded once.
    """
    kv_heads, block_size = pages.shape[1], pages.shape[3]
    tables, of_head = page_table.expand(kv_heads, -1), torch.arange(kv_heads, device=pages.device)[:, None]
    first_position = int(first_position)
    for out, stride in ((fine, kernel_stride), (coarse, 4 * kernel_stride)):
        begin = max(0, first_position // stride - 1)
        end = max(0, (first_position + tokens) // stride - 1)
        if begin < end:
            start, stop = begin * stride, (end + 1) * stride
            first_block, last_block = start // block_size, -(-stop // block_size)
            strip = pages[tables[:, first_block:last_block], of_head, 0].flatten(1, 2)
            keys = strip[:, start - first_block * block_size : stop - first_block * block_size]
            out[:, begin:end] = compress_keys(keys, 2 * stride, stride)
