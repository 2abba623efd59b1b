"""One token's K and V where a cache in two places keeps them: in host memory, and in the slots of its block."""

from __future__ import annotations

from torch import Tensor

from salalocal_kernels.ref.fetch_blocks import HostPages, SlotPool


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

    Args:
        keys, values: [Hkv, D], dtype of the pages.
        page_table: int64 [N], the page of each block.
        slot_table: int64 [Hkv, N], the slot of each block.
        position: absolute; an int64 tensor of one element where only the device knows it, which this definition waits
            for.
        host, pool: written to.
    """
    block, offset = divmod(int(position), pool.slots.shape[2])
    page = host.page(int(page_table[block]))
    slots = slot_table[:, block]
    for side, rows in enumerate((keys, values)):
        pool.slots[slots, side, offset] = rows
        page[:, side, offset] = rows.to(page.device)
