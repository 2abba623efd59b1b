"""K and V of all tokens in host memory, and on the device what is read: slots for single tokens, buffers for chunks.

Both are the same memory. A chunk's history passes through all of it, and the next token finds no block there: bringing
those of one token takes a millisecond or two.

Knows page numbers, not sessions. A page that is written to anew must be forgotten here first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salalocal.cache.host_memory import SEGMENT_BYTES, HostMemory
from salalocal.cache.page_table import PagePool
from salalocal.cache.staging import Lane, Outbox, Staging, read_pages
from salalocal.kv_tiers import Tiers
from salalocal_kernels import HostPages, SlotPool, fetch_blocks, strip_bytes, write_token

# How the host keeps K and V besides "full", in the dtype of the activations.
KV_CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Traffic:
    """What came from the host: blocks that decode steps asked for, and history that chunks were computed with.

    Attributes:
        hits: those that were on the device.
        misses: those that were fetched from the host.
        bytes: that this took.
        streamed_bytes: of history, for chunks.
        pin_seconds: spent on page-locking host memory.
    """

    hits: int
    misses: int
    bytes: int
    streamed_bytes: int
    pin_seconds: float


@dataclass(frozen=True)
class TierLayer:
    """One layer's pages in host memory, and its slots on the device."""

    host: HostPages
    pool: SlotPool

    @property
    def pages(self) -> Tensor:
        """[S, Hkv, 2, B, D]: the slots as pages, the same ones for each kv head."""
        return self.pool.slots[:, None].expand(-1, self.pool.slot_of.shape[0], -1, -1, -1)

    def fetch(
        self, blocks: Tensor, page_table: Tensor, length: int | Tensor, slot_table: Tensor, is_counted: bool = True
    ) -> None:
        """Brings blocks [Hkv, K] into slots and writes these into slot_table [Hkv, N]."""
        fetch_blocks(blocks, page_table, length, self.host, self.pool, slot_table, is_counted)

    def append(
        self,
        position: int | Tensor,
        keys: Tensor,
        values: Tensor,
        recent: Tensor,
        page_table: Tensor,
        slot_table: Tensor,
    ) -> None:
        """Stores keys and values [Hkv, D] of the token at `position`, after bringing here `recent` blocks [Hkv, R]: its
        own, and those before it that windows of compressed keys reach back to."""
        self.fetch(recent, page_table, position + 1, slot_table, is_counted=False)
        write_token(keys, values, page_table, slot_table, position, self.host, self.pool)


class TieredStore:
    """Storage behind a pool of pages in host memory, for all sessions of an engine.

    Args:
        layers: number of attention layers, at least one.
        kv_heads: K/V heads.
        head_dim: channels per head.
        block_size: tokens per page.
        dtype: of K and V on the device.
        device: that computes.
        slots: blocks of one kv head that a layer has on the device.
        staged_pages: pages of each of the two buffers.
        segment_bytes: by which host memory grows.
        kv: how the host keeps them: "full", or one of KV_CODES.
        strip_pages: as of `Staging`.

    Attributes:
        pool: hands out page numbers.
        host: where all pages are.
        page_shape: Hkv, 2, B and D.
        behind: the lane on which what was computed goes to the host.
        outbox: pages of chunks that are on that way.
        round: number of the chunk or token that is being read.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        slots: int,
        staged_pages: int,
        segment_bytes: int = SEGMENT_BYTES,
        kv: str = "full",
        strip_pages: int = 0,
    ) -> None:
        self.pool = PagePool()
        self.block_size = block_size
        self.kv_heads = kv_heads
        self.device = device
        self.dtype = dtype
        self.kv = kv
        self.page_shape = (kv_heads, 2, block_size, head_dim)
        self._strip_shape = (kv_heads, strip_bytes(block_size, head_dim))
        if kv == "full":
            self.host = HostMemory(layers, self.page_shape, dtype, device, segment_bytes)
        else:
            codes = KV_CODES[kv]
            self.host = HostMemory(layers, self._strip_shape, torch.uint8, device, segment_bytes, codes)
        self.behind = Lane(device)
        self.outbox = Outbox(self.behind, self.page_shape, dtype, device)
        self.round = 0
        row = (2, block_size, head_dim)
        # Zeros: what is not copied is multiplied by weights of 0.
        blocks = max(layers * slots, 2 * staged_pages * kv_heads)
        self._memory = torch.zeros(blocks, *row, dtype=dtype, device=device)
        self._slots = self._memory[: layers * slots].view(layers, slots, *row)
        buffers = self._memory[: 2 * staged_pages * kv_heads].view(2, staged_pages, kv_heads, *row)
        self._staging = Staging(buffers, strip_pages)
        self._has_slots = True
        # Pages of before the chunk that is being read, in every layer, and the round of that chunk.
        self._earlier = torch.empty(layers, 0, *self.page_shape, dtype=dtype, device=device)
        self._earlier_round = 0
        # One slot more than there is: what is in none is in that one.
        self._holds = torch.full((layers, slots + 1), -1, dtype=torch.int32, device=device)
        self._stamps = torch.zeros(layers, slots + 1, dtype=torch.int32, device=device)
        self._slot_of = torch.full((layers, kv_heads, 0), -1, dtype=torch.int32, device=device)
        self._clocks = torch.zeros(layers, 1, dtype=torch.int32, device=device)
        self._counts = torch.zeros(layers, 2, dtype=torch.int64, device=device)
        self._slot_table = torch.zeros(kv_heads, 0, dtype=torch.int64, device=device)

    @property
    def layers(self) -> int:
        """Number of attention layers."""
        return self._slots.shape[0]

    @property
    def shares(self) -> Tiers:
        """What device memory holds."""
        return Tiers(self._slots.shape[1], self._staging.pages, self._staging.strip_pages)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.host.page_bytes

    @property
    def capacity(self) -> int:
        """Pages there is host memory for."""
        return self.host.capacity

    @property
    def free_pages(self) -> int:
        """Pages of that memory which no session uses."""
        return self.capacity - self.pool.size + self.pool.free

    @property
    def device_bytes(self) -> int:
        """Bytes of slots and buffers, and of pages that chunks pass on."""
        return self._memory.nbytes + self._staging.nbytes + self.outbox.nbytes + self._earlier.nbytes

    @property
    def storage(self) -> tuple[Tensor, ...]:
        """What a recorded step refers to; the same objects for as long as nothing has moved."""
        return self._slots, self._slot_of, self.host.addresses

    # What one session makes another may write to, also where nothing is inferred.
    @torch.inference_mode(False)
    def reserve(self, pages: int) -> None:
        """Makes host memory for at least `pages` pages; raises MemoryError where there is none."""
        self.host.reserve(pages)
        layers, heads, known = self._slot_of.shape
        if self.capacity > known:
            # Twice as many: a step is recorded anew where this moves.
            grown = torch.full((layers, heads, 2 * self.capacity), -1, dtype=torch.int32, device=self.device)
            grown[:, :, :known] = self._slot_of
            self._slot_of = grown

    def layer(self, index: int) -> TierLayer:
        """One layer's part, good for as long as `storage` is the same."""
        pool = SlotPool(
            slots=self._slots[index],
            holds=self._holds[index],
            stamps=self._stamps[index],
            slot_of=self._slot_of[index],
            clock=self._clocks[index],
            counts=self._counts[index],
        )
        return TierLayer(self.host.layer(index), pool)

    @torch.inference_mode(False)
    def slot_table(self, blocks: int) -> Tensor:
        """int64 [Hkv, blocks or more] for `TierLayer.fetch` to write into; the next layer may write into the same."""
        if self._slot_table.shape[1] < blocks:
            self._slot_table = torch.zeros(self.kv_heads, 2 * blocks, dtype=torch.int64, device=self.device)
        return self._slot_table

    @torch.inference_mode(False)
    def earlier(self, layer: int, numbers: np.ndarray) -> Tensor:
        """[n, Hkv, 2, B, D]: what the pages `numbers` [n] of a layer held before this chunk.

        The first layer brings those of all: later on they would stand in line behind what layers ask for early.
        """
        if self._earlier_round != self.round:
            self._earlier_round, count = self.round, len(numbers)
            if self._earlier.shape[1] < count:
                self._earlier = self._earlier.new_empty(self.layers, count, *self.page_shape)
            strips = torch.empty(count, *self._strip_shape, dtype=torch.uint8, device=self.device)
            for index in range(self.layers):
                read_pages(self.host.layer(index), numbers, np.arange(count), self._earlier[index, :count], strips)
        return self._earlier[layer, : len(numbers)]

    def begin_round(self, pages: int) -> None:
        """A chunk of so many pages, or a token and 0, is going to be read: everything written so far is in its place
        for it."""
        self.round += 1
        self.behind.lead()
        if pages:
            self.outbox.reserve(pages)
        else:
            self.use_slots()

    def use_buffers(self) -> Staging:
        """The buffers, for a chunk; until `use_slots` no slot holds anything."""
        self._has_slots = False
        return self._staging

    def use_slots(self) -> None:
        """From here on slots hold what is brought into them, until a chunk uses the buffers."""
        if self._has_slots:
            return
        self._staging.drop()
        self._holds.fill_(-1)
        self._stamps.zero_()
        self._slot_of.fill_(-1)
        self._has_slots = True

    def forget(self, pages: Sequence[int]) -> None:
        """What slots hold of these pages is no longer what the host holds."""
        if not len(pages):
            return
        numbers = torch.tensor(pages, dtype=torch.int64).to(self.device)
        slots = self._slot_of[:, :, numbers].flatten(1).long()
        slots = torch.where(slots < 0, self._slots.shape[1], slots)
        self._holds.scatter_(1, slots, -1)
        self._stamps.scatter_(1, slots, 0)
        self._slot_of[:, :, numbers] = -1

    def copy_page(self, source: int, target: int) -> None:
        """Copies one page in every layer."""
        self.settle()
        for index in range(self.layers):
            host = self.host.layer(index)
            host.page(target).copy_(host.page(source))

    def settle(self) -> None:
        """Waits until the host holds all that was written, for the processor to read or overwrite."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def traffic(self) -> Traffic:
        """Since the beginning; waits for the device."""
        hits, misses = self._counts.sum(0).tolist()
        block_bytes = self.page_bytes // (self.layers * self.kv_heads)
        fetched, streamed = misses * block_bytes, self._staging.copied_bytes
        return Traffic(hits, misses, fetched, streamed, self.host.pin_seconds)
