"""Blocks of K and V that live in host memory, brought into slots on the device before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal_kernels.ref.kv_codes import unpack_pages

# Slots that were not used for so many calls, or more, count as equally old.
OLDEST_AGE = (1 << 16) - 1


@dataclass(frozen=True)
class HostPages:
    """The pages of one layer in host memory: for each page and kv head K then V, adjacent.

    Attributes:
        segments: [Q, Hkv, 2, B, D] each, contiguous; page p is the one at p % Q of segment p // Q. May grow at its end.
            With codes strips of them (`kv_codes`), uint8 [Q, Hkv, 2 B (D + 2)].
        addresses: int64 [C] on the device, where each segment begins; C is at least the number of segments.
        is_readable: the device reads this memory by itself.
        codes: int8 or float8_e4m3fn where pages are in 8 bits; None where they are in the dtype of the slots.
    """

    segments: Sequence[Tensor]
    addresses: Tensor
    is_readable: bool
    codes: torch.dtype | None = None

    @property
    def per_segment(self) -> int:
        """Q."""
        return self.segments[0].shape[0]

    def page(self, number: int) -> Tensor:
        """[Hkv, 2, B, D], or Hkv strips, a view."""
        return self.segments[number // self.per_segment][number % self.per_segment]


@dataclass(frozen=True)
class SlotPool:
    """Slots on the device, each for one page of one kv head, and who is where.

    Attributes:
        slots: [S, 2, B, D], contiguous.
        holds: int32 [S + 1], page * Hkv + head of each slot, -1 where it is empty; the last stands for no slot.
        stamps: int32 [S + 1], the call that last used each slot, 0 where none did.
        slot_of: int32 [Hkv, P], the slot of each page, -1 where it is not here.
        clock: int32 [1], calls so far.
        counts: int64 [2], blocks that were here and blocks that were not, in counted calls.
    """

    slots: Tensor
    holds: Tensor
    stamps: Tensor
    slot_of: Tensor
    clock: Tensor
    counts: Tensor


def fetch_blocks(
    blocks: Tensor,
    page_table: Tensor,
    length: int | Tensor,
    host: HostPages,
    pool: SlotPool,
    slot_table: Tensor,
    is_counted: bool = True,
) -> None:
    """Brings the blocks of each kv head into slots, in place of what was not used for longest.

    Of slots equally old those of lower number go first; they are filled in order of their numbers, with what is missing
    in order of heads and picks. No slot that this call uses is given away.

    Args:
        blocks: int32 [Hkv, K], none twice in a row; below 0 are none, and those from `length` on are left out. At most
            S of them are there.
        page_table: int64 [N], the page of each block.
        length: tokens in the cache; an int64 tensor of one element where only the device knows it, which this
            definition waits for.
        host: where all pages are.
        pool: written to.
        slot_table: int64 [Hkv, N], written to where there is a block: its slot.
        is_counted: whether the call counts in `pool.counts`.
    """
    kv_heads, block_size = pool.slot_of.shape[0], pool.slots.shape[2]
    last_slot = pool.slots.shape[0]
    pool.clock.add_(1)
    head, pick = ((blocks >= 0) & (blocks * block_size < length)).nonzero(as_tuple=True)
    block = blocks[head, pick].long()
    page = page_table[block]
    slot = pool.slot_of[head, page].long()
    is_missing = slot < 0
    pool.stamps[slot[~is_missing]] = pool.clock
    age = (pool.clock - pool.stamps[:last_slot]).clamp_(max=OLDEST_AGE)
    missing = int(is_missing.sum())
    victims = age.argsort(descending=True, stable=True)[:missing].sort().values
    given_up = pool.holds[victims].long()
    given_up = given_up[given_up >= 0]
    pool.slot_of[given_up % kv_heads, given_up // kv_heads] = -1
    slot[is_missing] = victims
    pool.slot_of[head, page] = slot.int()
    pool.holds[slot] = (page * kv_heads + head).int()
    pool.stamps[slot] = pool.clock
    slot_table[head, block] = slot
    for at, from_page, from_head in torch.stack([slot, page, head])[:, is_missing].T.tolist():
        page = host.page(from_page)[from_head]
        if host.codes is None:
            pool.slots[at] = page
        else:
            unpack_pages(page.to(pool.slots.device), host.codes, pool.slots[at])
    if is_counted:
        pool.counts.add_(torch.stack([(~is_missing).sum(), is_missing.sum()]))
