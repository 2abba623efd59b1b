"""One token's K and V where a cache in two places keeps them: in host memory, and in the slots of its block."""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal_kernels.ref.fetch_blocks import HostPages, SlotPool
from salalocal_kernels.ref.kv_codes import pack_pages, unpack_pages


def write_token(
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    slot_table: Tensor,
    position: int | Tensor,
    host: HostPages,
    pool: SlotPool,
) -> None:
    """Stores keys and values of the token at `position`, whose block `fetch_blocks` has brought here.

    Where the host keeps 8 bits, both places get the rounded numbers.

    Args:
        keys, values: [Hkv, D], dtype of the slots.
        page_table: int64 [N], the page of each block.
        slot_table: int64 [Hkv, N], the slot of each block.
        position: absolute; an int64 tensor of one element where only the device knows it, which this definition waits
            for.
        host, pool: written to.
    """
    block, offset = divmod(int(position), pool.slots.shape[2])
    page = host.page(int(page_table[block]))
    slots = slot_table[:, block]
    rows = torch.stack([keys, values], 1)
    if host.codes is None:
        page[:, :, offset] = rows.to(page.device)
    else:
        heads, (size, dim) = len(rows), pool.slots.shape[2:]
        # A page of one token, and the page that it is a row of.
        strips = pack_pages(rows[:, :, None], host.codes)
        unpack_pages(strips, host.codes, rows[:, :, None])
        strips, split = strips.to(page.device), 2 * size * dim
        page[:, :split].view(heads, 2, size, dim)[:, :, offset] = strips[:, : 2 * dim].view(heads, 2, dim)
        page[:, split:].view(heads, 2, size, 2)[:, :, offset] = strips[:, 2 * dim :].view(heads, 2, 2)
    pool.slots[slots, :, offset] = rows
