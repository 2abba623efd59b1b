"""Compressed keys as they grow: counts, forks and rewinding without a trace."""

from __future__ import annotations

import pytest
import torch

from salalocal.cache.compressed_keys import CompressedKeys, fine_and_coarse
from salalocal.sparse_config import SparseConfig


def level() -> CompressedKeys:
    return CompressedKeys(8, 4, 1, 2, torch.float32, torch.device("cpu"))


def numbered(start: int, stop: int, sign: int = 1) -> torch.Tensor:
    return (sign * torch.arange(start, stop).float()).view(1, -1, 1).expand(1, -1, 2)


def write(keys: CompressedKeys, first: int, windows: torch.Tensor) -> None:
    stop = first + windows.shape[1]
    keys.room(stop)[:, first:stop] = windows


@pytest.mark.parametrize(("length", "count"), [(0, 0), (7, 0), (8, 1), (11, 1), (12, 2), (100, 24)])
def test_counts(length: int, count: int) -> None:
    assert level().count(length) == count


def test_the_two_levels_of_infllm() -> None:
    fine, coarse = fine_and_coarse(
        SparseConfig(32, 16, 1, 64, 2048, 64, 8192), 2, 3, torch.float32, torch.device("cpu")
    )
    assert (fine.kernel_size, fine.stride, coarse.kernel_size, coarse.stride) == (32, 16, 128, 64)


def test_written_in_steps() -> None:
    keys = level()
    for start, stop in ((0, 0), (0, 1), (1, 3), (3, 200), (200, 201)):
        write(keys, start, numbered(start, stop))
    length = 201 * 4 + 4
    assert keys.count(length) == 201
    assert torch.equal(keys.upto(length), numbered(0, 201))
    assert keys.upto(7).shape == (1, 0, 2)


def test_rewinding_needs_no_work() -> None:
    keys = level()
    write(keys, 0, numbered(0, 9))
    write(keys, 3, numbered(3, 6, sign=-1))
    assert torch.equal(keys.upto(3 * 4 + 4), numbered(0, 3))
    assert torch.equal(keys.upto(6 * 4 + 4)[:, 3:], numbered(3, 6, sign=-1))


def test_forks_write_to_their_own() -> None:
    one = level()
    write(one, 0, numbered(0, 5))
    two = one.fork()
    three = two.fork()
    assert two.upto(24).data_ptr() == one.upto(24).data_ptr(), "shared until one writes"
    write(one, 5, numbered(5, 7))
    write(two, 2, numbered(2, 7, sign=-1))
    assert torch.equal(one.upto(32), numbered(0, 7))
    assert torch.equal(two.upto(32), torch.cat([numbered(0, 2), numbered(2, 7, sign=-1)], dim=1))
    assert torch.equal(three.upto(24), numbered(0, 5))


@pytest.mark.parametrize("first", ["the forked one", "the fork"])
def test_who_was_forked_stays_where_it_is(first: str) -> None:
    one = level()
    write(one, 0, numbered(0, 5))
    before, two = one.storage, one.fork()
    three, again = two.fork(), one.fork()
    for keys, start in [(one, 5), (two, 4)] if first == "the forked one" else [(two, 4), (one, 5)]:
        write(keys, start, numbered(start, 6, sign=-1))
    assert one.storage is before
    assert torch.equal(one.upto(28)[:, 5:], numbered(5, 6, sign=-1))
    assert torch.equal(two.upto(28)[:, 4:], numbered(4, 6, sign=-1))
    for keys in (three, again):
        assert torch.equal(keys.upto(24), numbered(0, 5))
    assert three.storage.data_ptr() == again.storage.data_ptr() != before.data_ptr(), "one copy for all that only read"


def test_a_fork_that_is_gone_costs_no_copy() -> None:
    one = level()
    write(one, 0, numbered(0, 5))
    two = one.fork()
    write(two, 5, numbered(5, 6, sign=-1))
    three = one.fork()
    del three
    copies = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", lambda *_: copies.append(1))
        write(one, 5, numbered(5, 6))
    assert not copies


def test_what_grows_leaves_the_old_storage_to_its_forks() -> None:
    one = level()
    write(one, 0, numbered(0, 5))
    before, two = one.storage, one.fork()
    write(one, 5, numbered(5, 200))
    assert two.storage is before
    assert torch.equal(two.upto(24), numbered(0, 5))


def test_bytes_follow_the_storage() -> None:
    keys = level()
    assert keys.nbytes == 0
    write(keys, 0, numbered(0, 5))
    assert keys.nbytes >= 5 * 2 * 4
