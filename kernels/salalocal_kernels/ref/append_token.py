"""One token's key and value into its page, and the windows it completes. Knows no session."""

from __future__ import annotations

from torch import Tensor

from salalocal_kernels.ref.extend_compressed_keys import extend_compressed_keys


def append_token(
    pages: Tensor,
    page_table: Tensor,
    fine: Tensor | None,
    coarse: Tensor | None,
    position: int | Tensor,
    key: Tensor,
    value: Tensor,
    kernel_stride: int,
) -> None:
    """Writes the token at `position`, then what `extend_compressed_keys` makes of it.

    Args:
        pages: [P, Hkv, 2, B, D]; the token's key and value are written to it.
        page_table: [N] int64, the page of each block.
        fine, coarse: [Hkv, C1, D] and [Hkv, C2, D], dtype of pages, with room for every window that is complete with
            the token; written to. None, both, where the layer keeps no compressed keys.
        position: absolute position of the token; an int64 tensor of one element where only the device knows it (a
            captured graph), which this definition waits for.
        key, value: [Hkv, D], dtype of pages.
        kernel_stride: tokens between fine windows; not looked at without them.
    """
    position = int(position)
    block_size = pages.shape[3]
    page = pages[int(page_table[position // block_size])]
    page[:, 0, position % block_size] = key
    page[:, 1, position % block_size] = value
    if fine is not None and coarse is not None:
        extend_compressed_keys(pages, page_table, fine, coarse, position, 1, kernel_stride)
