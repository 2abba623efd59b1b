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


def test_bytes_follow_the_storage() -> None:
    keys = level()
    assert keys.nbytes == 0
    write(keys, 0, numbered(0, 5))
    assert keys.nbytes >= 5 * 2 * 4
