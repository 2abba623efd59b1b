"""Compressed keys as Triton kernels: of a strip, and kept up in place from pages."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from sparse_gate import CHIPS, compile_for, run_checks, run_interpreted

from salalocal_kernels.ref.compress_keys import compress_keys as reference
from salalocal_kernels.ref.extend_compressed_keys import extend_compressed_keys as extend_reference

pytest.importorskip("triton")

from salalocal_kernels.gpu import compress_keys as module
from salalocal_kernels.gpu import extend_compressed_keys as extend_module


def check_a_strip() -> None:
    for tokens, kernel, stride, dim in ((0, 4, 2, 8), (3, 4, 2, 8), (4, 4, 2, 8), (37, 6, 3, 5), (300, 128, 64, 16)):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)):
            keys = strided(random(2, tokens, dim, dtype=dtype, seed=1))
            found = module.compress_keys(keys, kernel, stride)
            expected = reference(keys.double(), kernel, stride)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def check_in_place() -> None:
    for first, tokens, stride, block in ((0, 1, 2, 8), (0, 70, 2, 8), (15, 1, 2, 4), (16, 1, 2, 4), (31, 50, 3, 6)):
        blocks = -(-(first + tokens) // block)
        # Two kv heads whose pages lie in rows, as the cache stores them, and in no order.
        pages = random(2, 2, blocks + 2, block, 8, dtype=torch.float32, seed=2).permute(2, 0, 1, 3, 4)
        table = torch.randperm(blocks + 2, generator=torch.Generator().manual_seed(first))[:blocks]
        for position in (first, torch.tensor([first])):
            expected = [torch.full((2, 80, 8), 9.0), torch.full((2, 80, 8), 9.0)]
            found = [level.clone() for level in expected]
            extend_reference(pages, table, *expected, first, tokens, stride)
            extend_module.extend_compressed_keys(pages, table, *found, position, tokens, stride)
            # The same blocks in slots of one head each.
            slots = torch.cat([pages[:, 0], pages[:, 1]])[:, None].expand(-1, 2, -1, -1, -1)
            tables = torch.stack([table, table + blocks + 2])
            apart, defined = ([torch.full((2, 80, 8), 9.0) for _ in range(2)] for _ in range(2))
            extend_module.extend_compressed_keys(slots, tables, *apart, position, tokens, stride)
            extend_reference(slots, tables, *defined, first, tokens, stride)
            for ours, theirs, other, again in zip(found, expected, apart, defined, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
                assert torch.equal(other, ours)
                assert torch.equal(again, theirs)


def test_kept_up_in_steps_it_is_the_whole() -> None:
    pages = random(12, 2, 2, 4, 8, seed=4)
    table = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    keys = pages[table][:, :, 0].transpose(0, 1).flatten(1, 2)
    levels = [torch.zeros(2, 60, 8, dtype=torch.float64) for _ in range(2)]
    position = 0
    for tokens in (1, 3, 9, 16, 2, 17):
        extend_reference(pages, table, *levels, position, tokens, 1)
        position += tokens
    for level, stride in zip(levels, (1, 4), strict=True):
        whole = reference(keys[:, :position], 2 * stride, stride)
        assert torch.equal(level[:, : whole.shape[1]], whole)
        assert (level[:, whole.shape[1] :] == 0).all()


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("chip", CHIPS)
def test_compiles(chip: int) -> None:
    types = dict.fromkeys(("keys_ptr", "out_ptr", "pages_ptr", "fine_ptr", "coarse_ptr"), "*bf16")
    types |= {"table_ptr": "*i64", "position": "i64"}
    import triton.language as tl

    size = {"DIM": 128, "DIM_PADDED": 128, "ROWS": 32, "WIDE": tl.float32}
    strip = size | {"KERNEL": 128, "STRIDE": 64}
    assert compile_for(chip, module._compress_keys_kernel, strip, types, 2, 3) == 0
    in_place = size | {"STRIDE": 16, "BLOCK": 64, "POSITION_IN_MEMORY": False}
    assert compile_for(chip, extend_module._extend_compressed_keys_kernel, in_place, types, 2, 3) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("first", "tokens"), [((1 << 20) - 1, 1), (0, 8192), (1 << 19, 8191)])
def test_in_place_on_the_gpu(dtype: torch.dtype, first: int, tokens: int) -> None:
    blocks = -(-(first + tokens) // 64)
    pages = torch.randn(2, 2, blocks, 64, 128, device="cuda").to(dtype).permute(2, 0, 1, 3, 4)
    table = torch.randperm(blocks, device="cuda")
    levels = [torch.zeros(2, (first + tokens) // stride, 128, device="cuda", dtype=dtype) for stride in (16, 64)]
    expected = [level.double() for level in levels]
    extend_reference(pages.double(), table, *expected, first, tokens, 16)
    extend_module.extend_compressed_keys(pages, table, *levels, first, tokens, 16)
    for ours, theirs in zip(levels, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(dtype), rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=1e-6)


if __name__ == "__main__":
    run_checks(check_a_strip, check_in_place)
