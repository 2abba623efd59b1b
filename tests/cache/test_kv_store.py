"""K and V in pages: what was written is read back, wherever its pages lie, and however memory fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from salalocal.cache.kv_store import KVCache, KVStore


def store(
    layers: int = 2, kv_heads: int = 2, dim: int = 3, block: int = 4, dtype: torch.dtype = torch.float32
) -> KVStore:
    return KVStore(layers, kv_heads, dim, block, dtype, torch.device("cpu"))


def numbers(start: int, stop: int, layer: int = 0, heads: int = 2, dim: int = 3) -> Tensor:
    """[T, heads, dim], every number its own: position, layer, head and channel can be read off."""
    positions = torch.arange(start, stop).view(-1, 1, 1)
    return (positions * 1000 + layer * 100 + torch.arange(heads).view(-1, 1) * 10 + torch.arange(dim)).float()


def append(cache: KVCache, start: int, stop: int, layers: int = 2) -> None:
    cache.extend(start, stop)
    for layer in range(layers):
        cache.write(layer, start, numbers(start, stop, layer), -numbers(start, stop, layer))


def check(cache: KVCache, length: int, layers: int = 2) -> None:
    for layer in range(layers):
        expected = numbers(0, length, layer)
        pages = cache.context(layer, length)
        flat = pages.permute(2, 0, 3, 1, 4).reshape(2, -1, *expected.shape[1:])
        assert torch.equal(flat[0, :length], expected)
        assert torch.equal(flat[1, :length], -expected)
        assert torch.equal(cache.pages(layer)[cache.page_table[: pages.shape[0]]], pages)


@pytest.mark.parametrize("steps", [[1], [4], [3, 1, 1, 7], [5] * 9, [64]], ids=str)
def test_appended_in_any_steps(steps: list[int]) -> None:
    cache, at = KVCache(store()), 0
    for count in steps:
        append(cache, at, at + count)
        at += count
        check(cache, at)


@pytest.mark.parametrize("block", [1, 2, 64])
def test_block_sizes(block: int) -> None:
    cache = KVCache(store(block=block))
    append(cache, 0, 9)
    append(cache, 9, 10)
    check(cache, 10)


def test_forks_interleaved_read_their_own() -> None:
    one = KVCache(store())
    append(one, 0, 6)
    two = one.fork()
    append(two, 6, 7)
    append(one, 6, 19)
    append(two, 7, 30)
    three = two.fork()
    three.truncate(10)
    three.extend(10, 12)
    for layer in range(2):
        three.write(layer, 10, torch.zeros(2, 2, 3), torch.zeros(2, 2, 3))
    check(one, 19)
    check(two, 30)
    check(three, 10)


def test_truncated_and_written_again() -> None:
    cache = KVCache(store())
    append(cache, 0, 23)
    for length in (22, 16, 5, 4, 0):
        cache.truncate(length)
        append(cache, length, 23)
        check(cache, 23)


def test_storage_grows_by_an_eighth_not_at_every_block() -> None:
    cache, grown, at = KVCache(pages := store()), 0, 0
    append(cache, 0, 4 * 64)
    for at in range(4 * 64, 4 * 72):
        before = pages.capacity
        append(cache, at, at + 1)
        grown += pages.capacity != before
    assert grown <= 1
    assert pages.capacity <= 73 * 1.125 + 1


def test_reserved_storage_is_taken_once() -> None:
    cache = KVCache(pages := store())
    cache.reserve(0, 1000)
    before = [pages.pages(layer).data_ptr() for layer in range(2)]
    for at in range(0, 1000, 7):
        append(cache, at, min(at + 7, 1000))
    assert [pages.pages(layer).data_ptr() for layer in range(2)] == before
    check(cache, 1000)


def test_memory_that_ends_between_two_layers_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(store())
    append(cache, 0, 6)
    other = cache.fork()
    zeros, calls = np.zeros, []

    def second_fails(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return zeros(*args, **kwargs)  # type: ignore[no-any-return, call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", second_fails)
        with pytest.raises(MemoryError):
            append(cache, 6, 99)
    assert len(calls) == 2
    check(other, 6)
    append(cache, 6, 99)
    append(other, 6, 9)
    check(cache, 99)
    check(other, 9)


def test_a_model_without_attention_layers() -> None:
    cache = KVCache(pages := store(layers=0))
    append(cache, 0, 99, layers=0)
    cache.fork().extend(99, 200)
    cache.truncate(3)
    assert (pages.page_bytes, cache.nbytes) == (0, 0)


def test_bytes() -> None:
    cache = KVCache(pages := store(dtype=torch.bfloat16))
    cache.extend(0, 32)
    assert pages.page_bytes == 2 * 2 * 2 * 4 * 3 * 2
    assert cache.nbytes == pages.page_bytes * pages.capacity


def test_fresh_pages_are_finite_before_they_are_written() -> None:
    cache = KVCache(store())
    append(cache, 0, 1)
    assert cache.context(0, 1).isfinite().all(), "the tail of a block is multiplied by weights of 0; 0 x NaN is NaN"


def test_spans_of_tokens_are_views_where_pages_lie_in_a_row() -> None:
    cache = KVCache(pages := store())
    append(cache, 0, 30)
    span = cache.span(1, 8, 27)
    assert span.shape == (2, 2, 19, 3)
    assert span.untyped_storage().data_ptr() == pages.storage[1].untyped_storage().data_ptr()
    assert torch.equal(span, cache.context(1, 30).permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, 8:27])
    assert all(span[head, kind].is_contiguous() for head in range(2) for kind in range(2))
    fork = cache.fork()
    append(fork, 30, 40)  # its last block has moved
    scattered = fork.span(1, 8, 39)
    assert torch.equal(scattered[:, :, :19], span)
    assert all(scattered[head, kind].is_contiguous() for head in range(2) for kind in range(2))
