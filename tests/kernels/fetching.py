"""Pools, host pages and block lists for tests of `fetch_blocks`. Knows no implementation of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from salalocal_kernels import HostPages, SlotPool, pack_pages, unpack_pages

BLOCK, DIM, PER_SEGMENT = 16, 8, 3


@dataclass(frozen=True)
class Desk:
    """A host full of pages, a pool of slots, and a session's page table with room behind it."""

    host: HostPages
    pool: SlotPool
    page_table: Tensor
    slot_table: Tensor

    @staticmethod
    def new(
        pages: int,
        kv_heads: int,
        slots: int,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        codes: torch.dtype | None = None,
    ) -> Desk:
        """Every number in the host's pages is its own; the table names all pages in any order."""
        generator = torch.Generator().manual_seed(seed)
        count = -(-pages // PER_SEGMENT) * PER_SEGMENT
        data = torch.randn(count, kv_heads, 2, BLOCK, DIM, generator=generator).to(dtype)
        if codes is not None:
            data = pack_pages(data, codes)
        segments = list(data.split(PER_SEGMENT))
        addresses = torch.tensor([segment.data_ptr() for segment in segments] + [0] * 3)
        pool = SlotPool(
            torch.zeros(slots, 2, BLOCK, DIM, dtype=dtype),
            torch.full((slots + 1,), -1, dtype=torch.int32),
            torch.zeros(slots + 1, dtype=torch.int32),
            torch.full((kv_heads, count), -1, dtype=torch.int32),
            torch.zeros(1, dtype=torch.int32),
            torch.zeros(2, dtype=torch.int64),
        )
        table = torch.randperm(pages, generator=generator)
        slot_table = torch.zeros(kv_heads, pages, dtype=torch.int64)
        return Desk(HostPages(segments, addresses, True, codes), pool, table, slot_table)

    def twin(self) -> Desk:
        """The same host, and a pool and a slot table of its own."""
        pool = SlotPool(**{name: value.clone() for name, value in vars(self.pool).items()})
        return replace(self, pool=pool, slot_table=self.slot_table.clone())

    def values(self, page: int) -> Tensor:
        """[Hkv, 2, B, D]: what a page of the host holds."""
        held = self.host.page(page)
        if self.host.codes is None:
            return held
        found = self.pool.slots.new_empty(len(held), *self.pool.slots.shape[1:])
        unpack_pages(held, self.host.codes, found)
        return found

    def check(self, blocks: Tensor, length: int) -> None:
        """Every block that is there is in the slot its table names, and the pool's maps agree."""
        for head, row in enumerate(blocks.tolist()):
            for block in row:
                if block >= 0 and block * BLOCK < length:
                    page, slot = int(self.page_table[block]), int(self.slot_table[head, block])
                    assert torch.equal(self.pool.slots[slot], self.values(page)[head])
                    assert int(self.pool.stamps[slot]) == int(self.pool.clock)
        kv_heads = self.pool.slot_of.shape[0]
        found = {int(held): slot for slot, held in enumerate(self.pool.holds[:-1]) if held >= 0}
        named = {
            page * kv_heads + head: slot
            for head, row in enumerate(self.pool.slot_of.tolist())
            for page, slot in enumerate(row)
            if slot >= 0
        }
        assert found == named


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Desk, list[tuple[Tensor, int]]]:
    """A desk, and lists of blocks with lengths that its pool has slots for, often no more than just enough."""
    kv_heads, picks = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    pages = draw(st.integers(picks, 30))
    slots = kv_heads * picks + draw(st.integers(0, 9))
    codes = draw(st.sampled_from([None, torch.int8, torch.float8_e4m3fn]))
    desk = Desk.new(pages, kv_heads, slots, codes=codes)
    found = []
    for _ in range(draw(st.integers(1, 6))):
        rows = [
            draw(st.lists(st.integers(0, pages - 1), min_size=0, max_size=picks, unique=True)) for _ in range(kv_heads)
        ]
        if draw(st.booleans()):
            rows = [rows[0]] * kv_heads
        blocks = torch.tensor([sorted(row) + [-1] * (picks - len(row)) for row in rows], dtype=torch.int32)
        found.append((blocks, draw(st.integers(1, pages * BLOCK))))
    return desk, found
