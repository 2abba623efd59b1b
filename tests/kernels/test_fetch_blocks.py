"""Which slots blocks are brought into and which are given up, against a list in order of use."""

from __future__ import annotations

import pytest
import torch
from fetching import BLOCK, Desk, rounds
from hypothesis import given, settings
from torch import Tensor

from salalocal_kernels import fetch_blocks, pack_pages, unpack_pages, write_token
from salalocal_kernels.ref.fetch_blocks import OLDEST_AGE


def rows(*picks: list[int]) -> Tensor:
    return torch.tensor(picks, dtype=torch.int32)


def run(desk: Desk, blocks: Tensor, length: int = 1 << 20) -> list[int]:
    """Hits and misses of this call."""
    before = desk.pool.counts.clone()
    fetch_blocks(blocks, desk.page_table, length, desk.host, desk.pool, desk.slot_table)
    desk.check(blocks, length)
    return (desk.pool.counts - before).tolist()


def test_by_hand() -> None:
    desk = Desk.new(pages=10, kv_heads=1, slots=4)
    assert run(desk, rows([0, 3, 7])) == [0, 3]
    assert desk.slot_table[0, [0, 3, 7]].tolist() == [0, 1, 2], "empty slots, in order"
    assert run(desk, rows([3, 5, -1])) == [1, 1]
    assert desk.slot_table[0, [3, 5]].tolist() == [1, 3]
    assert run(desk, rows([1, 2, 5])) == [1, 2]
    assert desk.slot_table[0, [1, 2, 5]].tolist() == [0, 2, 3], "0 and 7 were not used for longest"
    assert run(desk, rows([0, -1, -1])) == [0, 1]
    assert desk.slot_table[0, 0] == 1, "then 3"


def test_heads_have_slots_of_their_own() -> None:
    desk = Desk.new(pages=6, kv_heads=2, slots=8)
    assert run(desk, rows([0, 4], [0, 4])) == [0, 4]
    assert run(desk, rows([4, -1], [0, 4])) == [3, 0]


def test_blocks_behind_the_length_are_not_there() -> None:
    desk = Desk.new(pages=6, kv_heads=1, slots=3)
    desk.page_table[3:] = 1 << 40
    assert run(desk, rows([0, 2, 3, 4, 5]), 2 * BLOCK + 1) == [0, 2]
    assert run(desk, rows([0, 2, 3, 4, 5]), 2 * BLOCK) == [1, 0]


def test_uncounted_calls() -> None:
    desk = Desk.new(pages=6, kv_heads=1, slots=3)
    fetch_blocks(rows([1]), desk.page_table, 99, desk.host, desk.pool, desk.slot_table, False)
    assert desk.pool.counts.tolist() == [0, 0]
    assert run(desk, rows([1])) == [1, 0]


def test_ages_beyond_the_oldest_are_equal() -> None:
    desk = Desk.new(pages=6, kv_heads=1, slots=2)
    run(desk, rows([0]))
    run(desk, rows([1]))
    desk.pool.stamps[:2] = torch.tensor([7, 5])
    desk.pool.clock.fill_(OLDEST_AGE + 20)
    run(desk, rows([2]))
    assert desk.slot_table[0, 2] == 0, "both are as old as can be, so the lower number"


@given(rounds())
@settings(max_examples=150, deadline=None)
def test_against_a_list_in_order_of_use(case: tuple[Desk, list[tuple[Tensor, int]]]) -> None:
    desk, calls = case
    order: list[tuple[int, int]] = []
    for blocks, length in calls:
        wanted = [
            (head, int(desk.page_table[block]))
            for head, row in enumerate(blocks.tolist())
            for block in row
            if block >= 0 and block * BLOCK < length
        ]
        expected = [sum(each in order for each in wanted), sum(each not in order for each in wanted)]
        assert run(desk, blocks, length) == expected
        order = [each for each in order if each not in wanted] + wanted
        held = [(int(held) % len(blocks), int(held) // len(blocks)) for held in desk.pool.holds[:-1] if held >= 0]
        assert set(wanted) <= set(held)
        # Of blocks last used by the same call either may have gone.
        order = [each for each in order if each in held]
        assert len(order) == len(held)


@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, 5 * BLOCK + 3])
def test_a_token_is_written_to_both_places(position: int, codes: torch.dtype | None) -> None:
    desk = Desk.new(pages=6, kv_heads=2, slots=3, codes=codes)
    block, offset = divmod(position, BLOCK)
    blocks = rows([block], [block])
    run(desk, blocks)
    keys, values = torch.randn(2, 8), torch.randn(2, 8)
    before = desk.values(int(desk.page_table[block])).clone()
    write_token(keys, values, desk.page_table, desk.slot_table, torch.tensor([position]), desk.host, desk.pool)
    desk.check(blocks, 1 << 20)
    expected = torch.stack([keys, values], 1)
    if codes is not None:
        unpack_pages(pack_pages(expected[:, :, None], codes), codes, expected[:, :, None])
    before[:, :, offset] = expected
    assert torch.equal(desk.values(int(desk.page_table[block])), before)
