"""Sparse attention as Triton kernels: prefill over unions of blocks, decode in splits, and the unions themselves."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random
from sparse_gate import CASES, MODELS, compile_for, run_checks, run_interpreted
from torch import Tensor

from salalocal_kernels.ref import attention as reference

pytest.importorskip("triton")

import triton.language as tl

from salalocal_kernels.gpu import sparse_attention_decode as decode_module
from salalocal_kernels.gpu import sparse_attention_unions as module
from salalocal_kernels.gpu.union_blocks import _union_blocks_kernel, union_blocks

TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-6, torch.float16: 2e-3}


def picks(first: int, tokens: int, block_size: int, kv_heads: int, k: int, device: str = "cpu") -> Tensor:
    """Blocks per kv head and query, its own and the first among them, neighbours alike, ascending, -1 padded."""
    generator = torch.Generator().manual_seed(first + k)
    picked = torch.full((kv_heads, tokens, k), -1, dtype=torch.int32)
    for g in range(kv_heads):
        liked = torch.randperm((first + tokens) // block_size + 1, generator=generator).tolist()
        for t in range(tokens):
            own = (first + t) // block_size
            liked.append(liked.pop(int(torch.randint(0, len(liked), (), generator=generator))))
            others = [b for b in liked if 0 < b < own][: k - 2]
            row = sorted({own, *([0] if k > 1 else []), *others})[: k if t % 5 else 1]
            row = sorted({*row, own})[-k:]
            picked[g, t, : len(row)] = torch.tensor(row, dtype=torch.int32)
    return picked.to(device)


def context(length: int, kv_heads: int, block_size: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pages in no order as the cache strides them, NaN behind the last token and in pages of other sessions."""
    blocks = -(-length // block_size)
    store = torch.full((kv_heads, 2, blocks + 2, block_size, dim), float("nan"), dtype=dtype)
    table = torch.randperm(blocks + 2, generator=torch.Generator().manual_seed(length))[:blocks]
    data = random(kv_heads, 2, blocks, block_size, dim, seed=2).to(dtype)
    data.flatten(2, 3)[:, :, length:] = float("nan")
    store[:, :, table] = data
    return store.permute(2, 0, 1, 3, 4), table


# first position, tokens, block size, group, kv heads, picks
SHAPES = [
    (0, 1, 16, 1, 1, 1),
    (0, 19, 16, 3, 2, 4),
    (200, 9, 16, 16, 1, 5),
    (333, 5, 32, 8, 2, 7),
    (150, 7, 16, 20, 1, 3),
]


def check_prefill() -> None:
    for first, tokens, block, group, kv_heads, k in SHAPES:
        blocks = picks(first, tokens, block, kv_heads, k)
        for dtype, tolerance in TOLERANCE.items():
            pages, table = context(first + tokens, kv_heads, block, 16, dtype)
            q = random(tokens, group * kv_heads + 2, 16, seed=1).to(dtype)[:, 1:-1]
            exact = pages.double().nan_to_num(0.0)
            expected = reference.sparse_attention_prefill(q.double(), exact, table, blocks, first, 0.3)
            for position in (first, torch.tensor([first])):
                found = module.sparse_attention_prefill(q, pages, table, blocks, position, 0.3)
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    pages, table = context(8, 1, 16, 16, torch.float32)
    none = module.sparse_attention_prefill(torch.zeros(0, 4, 16), pages, table, blocks[:1, :0], 8, 1.0)
    assert none.shape == (0, 4, 16)


def check_prefill_of_some_blocks() -> None:
    """Queries, tiles and whole calls that read nothing of a piece among them; what is read of nowhere is NaN."""
    for first, tokens, block, group, kv_heads, k in SHAPES:
        picked = picks(first, tokens, block, kv_heads, k)
        for dtype, tolerance in TOLERANCE.items():
            pages, table = context(first + tokens, kv_heads, block, 16, dtype)
            q = random(tokens, group * kv_heads, 16, seed=1).to(dtype)
            exact = pages.double().nan_to_num(0.0)
            wide = torch.promote_types(dtype, torch.float32)
            for low, high in ((0, 3), (3, 99), (99, 100)):
                blocks = torch.where((picked >= low) & (picked < high), picked, -1)
                expected_lse, lse = (
                    torch.empty(tokens, q.shape[1], dtype=torch.float64),
                    torch.empty(q.shape[:2], dtype=wide),
                )
                expected = reference.sparse_attention_prefill(
                    q.double(), exact, table, blocks, first, 0.3, expected_lse
                )
                found = module.sparse_attention_prefill(q, pages, table, blocks, first, 0.3, lse)
                assert found.dtype == wide
                torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=max(tolerance, 1e-6))


def check_prefill_piece_by_piece() -> None:
    """Each call takes in what the ones before it have read; tiles that read nothing of a piece keep what they have."""
    for first, tokens, block, group, kv_heads, k in SHAPES:
        blocks = picks(first, tokens, block, kv_heads, k)
        for dtype, tolerance in TOLERANCE.items():
            pages, table = context(first + tokens, kv_heads, block, 16, dtype)
            for dim in (16, 8):
                q = random(tokens, group * kv_heads, dim, seed=1).to(dtype)
                some = pages[..., :dim]
                lse = torch.empty(q.shape[:2], dtype=torch.promote_types(dtype, torch.float32))
                out: Tensor | None = None
                for span in ((0, 0), (3, 9), (90, 99), (9, 90), (0, 3)):
                    found = module.sparse_attention_prefill(q, some, table, blocks, first, 0.3, lse, out, span)
                    assert out is None or found is out
                    out = found
                assert out is not None
                exact, exact_lse = some.double().nan_to_num(0.0), torch.empty(q.shape[:2], dtype=torch.float64)
                expected = reference.sparse_attention_prefill(q.double(), exact, table, blocks, first, 0.3, exact_lse)
                torch.testing.assert_close(out.double(), expected, rtol=2 * tolerance, atol=2 * tolerance)
                torch.testing.assert_close(lse.double(), exact_lse, rtol=2e-6, atol=max(tolerance, 2e-6))


def check_tiles_of_an_h100() -> None:
    first, tokens = 300, 11
    pages, table = context(first + tokens, 1, 16, 16, torch.float16)
    q = random(tokens, 16, 16, seed=1).half()
    blocks = picks(first, tokens, 16, 1, 6)
    exact = reference.sparse_attention_prefill(q.double(), pages.double().nan_to_num(0.0), table, blocks, first, 0.3)
    chosen = module.capability
    module.capability = lambda _: 90
    found = module.sparse_attention_prefill(q, pages, table, blocks, first, 0.3)
    module.capability = chosen
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=2e-3)


def check_decode() -> None:
    for length, block, group, kv_heads, k in (
        (1, 16, 1, 1, 1),
        (17, 16, 3, 2, 4),
        (900, 16, 16, 1, 41),
        (90, 32, 8, 2, 3),
    ):
        blocks = picks(length - 1, 1, block, kv_heads, k)[:, 0]
        for dtype, tolerance in TOLERANCE.items():
            pages, table = context(length, kv_heads, block, 16, dtype)
            q = random(group * kv_heads, 16, seed=1).to(dtype)
            exact = pages.double().nan_to_num(0.0)
            mass = torch.empty(kv_heads, k)
            expected = reference.sparse_attention_decode(q.double(), exact, table, blocks, length, 0.3, mass)
            for end in (length, torch.tensor([length])):
                found_mass = torch.empty(kv_heads, k)
                found = decode_module.sparse_attention_decode(q, pages, table, blocks, end, 0.3, found_mass)
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
                torch.testing.assert_close(found_mass, mass, rtol=2e-3, atol=1e-6)
                assert torch.equal(found, decode_module.sparse_attention_decode(q, pages, table, blocks, end, 0.3))
                slots, slot_table = own_slots(pages, table, blocks)
                assert torch.equal(found, decode_module.sparse_attention_decode(q, slots, slot_table, blocks, end, 0.3))


def own_slots(pages: Tensor, table: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks of each kv head in slots of one head, in reverse, and a table per head that names nothing else."""
    found = blocks.flip(1).flatten().tolist()
    heads = [number // blocks.shape[1] for number in range(len(found))]
    slots = torch.stack([pages[table[max(block, 0)], head] for block, head in zip(found, heads, strict=True)])
    slot_table = torch.zeros(blocks.shape[0], len(table), dtype=torch.int64, device=table.device)
    for slot, (block, head) in enumerate(zip(found, heads, strict=True)):
        if block >= 0:
            slot_table[head, block] = slot
    return slots[:, None].expand(-1, blocks.shape[0], -1, -1, -1), slot_table


def check_unions() -> None:
    blocks = picks(100, 7, 4, 2, 6)
    table = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for queries, low, stop in ((1, 0, 99), (2, 0, 99), (4, 0, 99), (8, 0, 99), (4, 3, 20), (2, 26, 27), (8, 5, 5)):
        entries, counts = union_blocks(blocks, table, queries, None if stop == 99 else (low, stop))
        for g in range(2):
            for tile in range(counts.shape[1]):
                readers: dict[int, int] = {}
                for query, row in enumerate(blocks[g, tile * queries : (tile + 1) * queries].tolist()):
                    for block in row:
                        if max(low, 0) <= block < stop:
                            readers[block] = readers.get(block, 0) | 1 << query
                expected = [int(table[b]) << 32 | b << 8 | readers[b] for b in sorted(readers)]
                assert int(counts[g, tile]) == len(expected)
                assert entries[g, tile, : len(expected)].tolist() == expected


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


POINTERS = {
    "table_ptr": "*i64",
    "entries_ptr": "*i64",
    "counts_ptr": "*i32",
    "blocks_ptr": "*i32",
    "scale_log2": "fp32",
}


@pytest.mark.parametrize(("name", "chip", "dtype"), [*((*case, "bf16") for case in CASES), ("released", 86, "fp32")])
def test_prefill_compiles(name: str, chip: int, dtype: str) -> None:
    group, dim = MODELS[name]
    queries, warps, stages = module.tiling(chip, group, 2 if dtype == "bf16" else 4)
    types = (
        POINTERS
        | {"scale_log2": "fp32"}
        | dict.fromkeys(("q_ptr", "pages_ptr", "out_ptr"), f"*{dtype}")
        | {"position": "i64"}
    )
    types |= {"lse_ptr": "*fp32"}
    constants = {"POSITION_IN_MEMORY": False, "QUERIES": queries, "GROUP": group, "GROUP_PADDED": group, "BLOCK": 64}
    constants |= {"DIM": dim, "WIDE": tl.float32, "FIXED_STEPS": 0}
    for has_lse, is_continued in ((False, False), (True, False), (True, True)):
        constants |= {"HAS_LSE": has_lse, "IS_CONTINUED": is_continued}
        types["out_ptr"] = "*fp32" if has_lse else f"*{dtype}"
        spilled = compile_for(chip, module._sparse_attention_kernel, constants, types, warps, stages)
        assert spilled == 0 or dtype == "fp32"
    if dtype == "bf16":
        constants = {"K": 96, "K_PADDED": 128, "QUERIES": queries}
        assert compile_for(chip, _union_blocks_kernel, constants, types, 4, 3) == 0


@pytest.mark.parametrize(("name", "chip"), CASES)
def test_decode_compiles(name: str, chip: int) -> None:
    group, dim = MODELS[name]
    types = POINTERS | {"scale_log2": "fp32"} | dict.fromkeys(("q_ptr", "pages_ptr", "out_ptr"), "*bf16")
    types |= dict.fromkeys(("part_ptr", "lse_ptr", "mass_ptr"), "*fp32") | {"length": "*i64"}
    common = {"PER_SPLIT": 2, "GROUP": group, "DIM": dim, "WIDE": tl.float32, "IS_EARLY": chip >= 90}
    split = common | {"LENGTH_IN_MEMORY": True, "PICKS": 96, "ROWS": 16, "BLOCK": 64}
    assert compile_for(chip, decode_module._attend_split_kernel, split, types, 4, 1) == 0
    combine = common | {"SPLITS": 48, "AT_ONCE": 32}
    assert compile_for(chip, decode_module._combine_splits_kernel, combine, types, 4, 1) == 0
    mass = {"PICKS": 96, "SLOTS": 96, "GROUP": group, "AT_ONCE": 128, "WIDE": tl.float32}
    assert compile_for(chip, decode_module._block_mass_kernel, mass, types, 1, 1) == 0


def errors(found: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    return float((found.double() - exact).abs().max()), float((plain.double() - exact).abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("first", "tokens"), [(0, 70), (100_000, 33), (250_000, 1)])
def test_on_the_gpu(dtype: torch.dtype, first: int, tokens: int) -> None:
    """No further from float64 than twice plain PyTorch in the same dtype."""
    length = first + tokens
    count = -(-length // 64)
    pages = torch.randn(2, 2, count, 64, 128, device="cuda").to(dtype).permute(2, 0, 1, 3, 4)
    table = torch.randperm(count, device="cuda")
    q = torch.randn(tokens, 32, 128, device="cuda").to(dtype)
    blocks = picks(first, tokens, 64, 2, 96, "cuda")
    arguments = (table, blocks, first, 128**-0.5)
    exact = reference.sparse_attention_prefill(q.double(), pages.double(), *arguments)
    plain = reference.sparse_attention_prefill(q, pages, *arguments)
    error, allowed = errors(module.sparse_attention_prefill(q, pages, *arguments), plain, exact)
    assert error <= 2 * allowed + 1e-6
    arguments = (table, blocks[:, -1], length, 128**-0.5)
    mass, exact_mass = torch.empty(2, 96, device="cuda"), torch.empty(2, 96, device="cuda")
    exact = reference.sparse_attention_decode(q[-1].double(), pages.double(), *arguments, exact_mass)
    found = decode_module.sparse_attention_decode(q[-1], pages, *arguments, mass)
    plain = reference.sparse_attention_decode(q[-1], pages, *arguments)
    error, allowed = errors(found, plain, exact)
    assert error <= 2 * allowed + 1e-6
    torch.testing.assert_close(mass, exact_mass, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pieces_and_own_slots_on_the_gpu(dtype: torch.dtype) -> None:
    first, tokens, count = 64_000, 37, 1001
    pages = torch.randn(2, 2, count, 64, 128, device="cuda").to(dtype).permute(2, 0, 1, 3, 4)
    table = torch.randperm(count, device="cuda")
    q = torch.randn(tokens, 32, 128, device="cuda").to(dtype)
    picked = picks(first, tokens, 64, 2, 96, "cuda")
    for low, high in ((0, 300), (300, count)):
        blocks = torch.where((picked >= low) & (picked < high), picked, -1)
        exact_lse = torch.empty(tokens, 32, device="cuda", dtype=torch.float64)
        exact = reference.sparse_attention_prefill(q.double(), pages.double(), table, blocks, first, 0.09, exact_lse)
        lse = torch.empty(tokens, 32, device="cuda")
        found = module.sparse_attention_prefill(q, pages, table, blocks, first, 0.09, lse)
        assert (found - exact).abs().max() < (1e-5 if dtype == torch.float32 else 2e-2)
        torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)
    arguments = table, picked, first, 0.09
    exact = reference.sparse_attention_prefill(q.double(), pages.double(), *arguments)
    plain = reference.sparse_attention_prefill(q, pages, *arguments)
    lse, out = torch.empty(tokens, 32, device="cuda"), None
    for span in ((0, 300), (300, 301), (301, 990), (990, count)):
        out = module.sparse_attention_prefill(q, pages, *arguments, lse, out, span)
    error, allowed = errors(out, plain, exact)
    assert error <= 2 * allowed + 1e-6
    arguments = picked[:, -1], first + tokens, 0.09
    slots, slot_table = own_slots(pages, table, picked[:, -1])
    whole = decode_module.sparse_attention_decode(q[-1], pages, table, *arguments)
    assert torch.equal(whole, decode_module.sparse_attention_decode(q[-1], slots, slot_table, *arguments))


@pytest.mark.gpu
def test_pages_past_2_to_the_31_on_the_gpu() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16 << 30:
        pytest.skip("needs 10 GB")
    # The last page of the last head begins at element 2^31 + 2^28.
    count = (1 << 31) // (4 * 64 * 128) + (1 << 13)
    pages = torch.zeros(2, 2, count, 64, 128, device="cuda", dtype=torch.bfloat16).permute(2, 0, 1, 3, 4)
    pages[-97:] = torch.randn(97, 2, 2, 64, 128, device="cuda").bfloat16()
    table = torch.arange(count - 97, count, device="cuda")
    q = torch.randn(5, 32, 128, device="cuda").bfloat16()
    first = 97 * 64 - 5
    blocks = picks(first, 5, 64, 2, 96, "cuda")
    small, order = pages[-97:].double(), torch.arange(97, device="cuda")
    exact = reference.sparse_attention_prefill(q.double(), small, order, blocks, first, 0.09)
    found = module.sparse_attention_prefill(q, pages, table, blocks, first, 0.09)
    assert (found.double() - exact).abs().max() < 1e-2
    found = decode_module.sparse_attention_decode(q[-1], pages, table, blocks[:, -1], first + 5, 0.09)
    assert (found.double() - exact[-1]).abs().max() < 1e-2


if __name__ == "__main__":
    run_checks(
        check_unions,
        check_prefill,
        check_prefill_of_some_blocks,
        check_prefill_piece_by_piece,
        check_tiles_of_an_h100,
        check_decode,
    )
