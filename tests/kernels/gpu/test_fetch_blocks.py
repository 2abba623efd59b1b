"""Blocks fetched from host memory by kernels: bit for bit what the definition does, maps and victims included."""

from __future__ import annotations

import itertools

import pytest
import torch
from fetching import BLOCK, Desk, rounds
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from hypothesis import given, settings
from torch import Tensor

from salalocal_kernels import HostPages, SlotPool, strip_bytes
from salalocal_kernels.gpu import fetch_blocks as gpu
from salalocal_kernels.gpu import write_token as gpu_write
from salalocal_kernels.ref import fetch_blocks as ref
from salalocal_kernels.ref.kv_codes import pack_pages, unpack_pages

CODES = (torch.int8, torch.float8_e4m3fn)


def assert_alike(one: Desk, other: Desk) -> None:
    spare = one.pool.slots.shape[0]
    for name, value in vars(one.pool).items():
        found, expected = value, getattr(other.pool, name)
        if name in ("holds", "stamps"):
            found, expected = found[:spare], expected[:spare]
        assert torch.equal(found, expected), name
    assert torch.equal(one.slot_table, other.slot_table)


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


@given(rounds())
@settings(max_examples=60, deadline=None)
def check_any_calls(case: tuple[Desk, list[tuple[Tensor, int]]]) -> None:
    desk, calls = case
    other = desk.twin()
    for number, (blocks, length) in enumerate(calls):
        end = length if number % 2 else torch.tensor([length])
        gpu.fetch_blocks(blocks, desk.page_table, end, desk.host, desk.pool, desk.slot_table, number != 1)
        ref.fetch_blocks(blocks, desk.page_table, length, desk.host, other.pool, other.slot_table, number != 1)
        assert_alike(desk, other)


def check_a_pool_of_several_tiles_and_old_ages() -> None:
    gpu._TILE, tile = 32, gpu._TILE
    generator = torch.Generator().manual_seed(3)
    desk = Desk.new(pages=150, kv_heads=2, slots=117)
    other = desk.twin()
    for number in range(40):
        if number in (20, 30):
            for pool in (desk.pool, other.pool):
                pool.clock.add_(100 if number == 20 else ref.OLDEST_AGE - 30)
        blocks = torch.stack([torch.randperm(150, generator=generator)[:11].sort().values for _ in range(2)]).int()
        gpu.fetch_blocks(blocks, desk.page_table, 150 * BLOCK, desk.host, desk.pool, desk.slot_table)
        ref.fetch_blocks(blocks, desk.page_table, 150 * BLOCK, desk.host, other.pool, other.slot_table)
        assert_alike(desk, other)
    gpu._TILE = tile


def check_tokens_are_written_to_both_places() -> None:
    for dtype, codes in itertools.product((torch.float32, torch.float16), (None, *CODES)):
        desk = Desk.new(pages=7, kv_heads=2, slots=9, dtype=dtype, codes=codes)
        blocks = torch.tensor([[0, 2, 6]] * 2, dtype=torch.int32)
        ref.fetch_blocks(blocks, desk.page_table, 1 << 20, desk.host, desk.pool, desk.slot_table)
        for position in (0, 2 * BLOCK + 5, 7 * BLOCK - 1):
            for at in (position, torch.tensor([position])):
                keys, values = torch.randn(2, 3, 8).to(dtype)[:, 1], torch.randn(2, 8).to(dtype)
                gpu_write.write_token(keys, values, desk.page_table, desk.slot_table, at, desk.host, desk.pool)
                desk.check(blocks, 1 << 20)
                page = desk.values(int(desk.page_table[position // BLOCK]))
                expected = torch.stack([keys, values], 1)
                if codes is not None:
                    unpack_pages(pack_pages(expected[:, :, None], codes), codes, expected[:, :, None])
                assert torch.equal(page[:, :, position % BLOCK], expected)


def released(
    slots: int, device: str = "meta", codes: torch.dtype | None = None
) -> tuple[HostPages, SlotPool, Tensor, Tensor]:
    """A pool of the released model's blocks, and 16,384 blocks in the host."""

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    pool = SlotPool(
        empty(slots, 2, 64, 128, dtype=torch.bfloat16), empty(slots + 1), empty(slots + 1), empty(2, 16384), empty(1),
        empty(2, dtype=torch.int64),
    )  # fmt: skip
    segment = torch.empty(512, 2, 2, 64, 128, dtype=torch.bfloat16, device="meta")
    if codes is not None:
        segment = torch.empty(512, 2, strip_bytes(64, 128), dtype=torch.uint8, device="meta")
    host = HostPages([segment], empty(64, dtype=torch.int64), True, codes)
    return host, pool, empty(16384, dtype=torch.int64), empty(2, 16384, dtype=torch.int64)


@pytest.mark.parametrize(("slots", "codes"), [(256, None), (4096, None), (49152, None), *((256, one) for one in CODES)])
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int, slots: int, codes: torch.dtype | None) -> None:
    host, pool, table, slot_table = released(slots, codes=codes)
    length = torch.empty(1, dtype=torch.int64, device="meta")
    blocks = torch.empty(2, 128 if slots == 256 else 96, dtype=torch.int32, device="meta")
    assign, copy = launches(lambda: gpu.fetch_blocks(blocks, table, length, host, pool, slot_table))
    assert_fits(assign, capability)
    found = assert_fits(copy, capability)
    assert "ld.global.v4.b32" in found.ptx
    assert "st.global.v4.b32" in found.ptx
    rows = torch.empty(2, 128, dtype=torch.bfloat16, device="meta")
    (write,) = launches(lambda: gpu_write.write_token(rows, rows, table, slot_table, length, host, pool))
    assert_fits(write, capability)


@pytest.mark.gpu
@pytest.mark.parametrize(("slots", "codes"), [(192, None), (300, None), (5000, None), *((300, one) for one in CODES)])
def test_on_the_gpu(slots: int, codes: torch.dtype | None) -> None:
    """Random and repeated picks out of pinned memory, recorded once and replayed, against the definition."""
    generator = torch.Generator().manual_seed(slots)
    memory = torch.randn(3000, 2, 2, 64, 128).bfloat16()
    segments = list((memory if codes is None else pack_pages(memory, codes)).pin_memory().split(1000))
    addresses = torch.tensor([segment.data_ptr() for segment in segments], device="cuda")
    host = HostPages(segments, addresses, True, codes)
    _, pool, _, slot_table = released(slots, "cuda")
    pool.holds.fill_(-1), pool.slot_of.fill_(-1), slot_table.zero_()
    for each in (pool.stamps, pool.clock, pool.counts, pool.slots):
        each.zero_()
    other = SlotPool(**{name: value.clone() for name, value in vars(pool).items()})
    other_table = slot_table.clone()
    table = torch.randperm(3000, generator=generator).cuda()
    liked = torch.stack([torch.randperm(3000, generator=generator)[:400] for _ in range(2)])
    blocks = torch.full((2, 96), -1, dtype=torch.int32, device="cuda")
    length = torch.tensor([2990 * 64 + 3], device="cuda")
    graph = torch.cuda.CUDAGraph()
    gpu.fetch_blocks(blocks, table, length, host, pool, slot_table)
    ref.fetch_blocks(blocks, table, length, host, other, other_table)
    with torch.cuda.graph(graph):
        gpu.fetch_blocks(blocks, table, length, host, pool, slot_table)
    for number in range(60):
        picks = [row[torch.randperm(400, generator=generator)[: 96 - number % 3]].sort().values for row in liked]
        for row, found in zip(blocks, picks, strict=True):
            row.fill_(-1)[: len(found)].copy_(found)
        graph.replay()
        ref.fetch_blocks(blocks, table, length, host, other, other_table)
        for name in ("slot_of", "clock", "counts", "slots"):
            assert torch.equal(getattr(pool, name), getattr(other, name)), (name, number)
        for name in ("holds", "stamps"):
            assert torch.equal(getattr(pool, name)[:slots], getattr(other, name)[:slots]), (name, number)
        assert torch.equal(slot_table, other_table)
    row = torch.randn(2, 128, device="cuda").bfloat16()
    position = length - 1
    blocks[:, 0] = int(position) // 64
    ref.fetch_blocks(blocks[:, :1], table, length, host, pool, slot_table)
    gpu_write.write_token(row, -row, table, slot_table, position, host, pool)
    torch.cuda.synchronize()
    page = host.page(int(table[int(position) // 64])).cuda()
    expected, held = torch.stack([row, -row], 1), page
    if codes is not None:
        unpack_pages(pack_pages(expected[:, :, None], codes), codes, expected[:, :, None])
        held = torch.empty(2, 2, 64, 128, device="cuda").bfloat16()
        unpack_pages(page, codes, held)
    assert torch.equal(held[:, :, int(position) % 64], expected)
    at = slot_table[:, int(position) // 64]
    assert torch.equal(pool.slots[at, :, int(position) % 64], expected)


if __name__ == "__main__":
    main(globals())
