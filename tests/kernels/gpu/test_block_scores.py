"""Block scores as Triton kernels: against the definition in float64, through the compiler, and on a GPU."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random
from sparse_gate import CASES, MODELS, compile_for, run_checks, run_interpreted
from torch import Tensor

from salalocal_kernels import compress_keys
from salalocal_kernels.ref.block_scores import block_scores as reference

pytest.importorskip("triton")

from salalocal_kernels.gpu import block_scores as module

# first position, tokens, stride, stride's per block, group, kv heads
SHAPES = [
    (0, 1, 2, 4, 1, 2),
    (0, 40, 1, 1, 3, 2),
    (15, 9, 2, 4, 16, 1),
    (32, 17, 4, 2, 2, 2),
    (63, 2, 2, 8, 8, 1),
    (1500, 9, 2, 4, 16, 1),
    (2999, 1, 1, 4, 16, 2),
]


def inputs(
    first: int, tokens: int, stride: int, group: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """q between the other outputs of a merged projection, compressed keys in a larger buffer."""
    length, heads = first + tokens, group * kv_heads
    q = random(tokens, heads + 3, 16, seed=1, dtype=dtype)[:, 1:-2]
    keys = random(kv_heads, length, 16, seed=2).to(dtype).double()
    levels = []
    for factor in (1, 4):
        level = compress_keys(keys, 2 * factor * stride, factor * stride).to(dtype)
        buffer = torch.full((kv_heads, level.shape[1] + 5, 16), float("nan"), dtype=dtype)
        buffer[:, : level.shape[1]] = level
        levels.append(buffer[:, : level.shape[1]])
    return q, levels[0], levels[1]


def check_against_the_definition() -> None:
    for first, tokens, stride, per_block, group, kv_heads in SHAPES:
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 1e-4)):
            q, k1, k2 = inputs(first, tokens, stride, group, kv_heads, dtype)
            block = stride * per_block
            blocks = -(-(first + tokens) // block)
            arguments = (first, 0.25, stride, block, blocks)
            found = module.block_scores(q, k1, k2, *arguments)
            expected = reference(q.double(), k1.double(), k2.double(), *arguments)
            assert found.shape == expected.shape
            assert found.dtype == torch.float32
            assert torch.equal(found.isneginf(), expected.isneginf()), (first, tokens)
            there = ~expected.isneginf()
            torch.testing.assert_close(found.double()[there], expected[there], rtol=tolerance, atol=1e-7)


def check_future_keys_and_positions_in_memory() -> None:
    q, k1, k2 = inputs(200, 5, 2, 16, 1, torch.float32)
    before = module.block_scores(q, k1, k2, 200, 0.25, 2, 8, 26)
    # As in a captured graph: buffers longer than the context, and a position that only the device knows.
    longer = [torch.cat([level, torch.full((1, 7, 16), float("nan"))], 1) for level in (k1, k2)]
    after = module.block_scores(q, *longer, torch.tensor([200]), 0.25, 2, 8, 28)
    assert torch.equal(before[..., :25], after[..., :25])
    assert (after[..., 26:] == 0).all()


def check_nothing_to_do() -> None:
    q, k1, k2 = inputs(0, 4, 2, 2, 1, torch.float32)
    assert module.block_scores(q[:0], k1, k2, 4, 0.25, 2, 8, 1).shape == (1, 0, 1)
    assert module.block_scores(q, k1[:, :0], k2, 0, 0.25, 2, 8, 1).isneginf().all()


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize(("name", "chip", "tokens"), [*((*case, 8192) for case in CASES), ("released", 90, 1)])
def test_compiles(name: str, chip: int, tokens: int) -> None:
    group, dim = MODELS[name]
    size = module.tiles(chip, is_wide=False)
    types = dict.fromkeys(("q_ptr", "k1_ptr", "k2_ptr"), "*bf16")
    types |= {
        "lse_ptr": "*fp32",
        "out_ptr": "*fp32",
        "scale_log2": "fp32",
        "position": "*i64" if tokens == 1 else "i64",
    }
    common = {"POSITION_IN_MEMORY": tokens == 1, "GROUP": group, "GROUP_PADDED": group, "DIM": dim}
    fine = {"SPACING": 16, "PER_BLOCK": 4, "RUN": 16, "ROWS": size.rows, "SPLITS": 1}
    fine |= common | {"QUERIES": 16 // group if tokens == 1 else size.columns // group}
    assert compile_for(chip, module._block_scores_kernel, fine, types, size.warps, size.stages) == 0
    coarse = {"SPACING": 64, "KEYS": size.coarse_keys, "FIXED_STEPS": 0}
    coarse |= common | {"QUERIES": 16 // group if tokens == 1 else size.coarse_rows // group}
    assert compile_for(chip, module._coarse_lse_kernel, coarse, types, size.coarse_warps, size.coarse_stages) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 100, 1024])
def test_on_the_gpu(dtype: torch.dtype, tokens: int) -> None:
    """At 1M tokens; no further from float64 than twice plain PyTorch in float32."""
    length = 1 << 20
    generator = torch.Generator("cuda").manual_seed(tokens)
    q = torch.randn(tokens, 32, 128, generator=generator, device="cuda").to(dtype)
    k1 = torch.randn(2, length // 16 - 1, 128, generator=generator, device="cuda").to(dtype)
    k2 = torch.randn(2, length // 64 - 1, 128, generator=generator, device="cuda").to(dtype)
    arguments = (length - tokens, 128**-0.5, 16, 64, length // 64)
    found = module.block_scores(q, k1, k2, *arguments)
    rows = slice(0, tokens, max(1, tokens // 8))
    exact = torch.cat([reference(q[t : t + 1].double(), k1.double(), k2.double(), length - tokens + t, *arguments[1:])
                       for t in range(*rows.indices(tokens))], 1)  # fmt: skip
    plain = reference(q[rows].float(), k1.float(), k2.float(), length - tokens, *arguments[1:])
    if tokens > 1:
        plain = torch.cat([reference(q[t : t + 1].float(), k1.float(), k2.float(), length - tokens + t, *arguments[1:])
                           for t in range(*rows.indices(tokens))], 1)  # fmt: skip
    there = ~exact.isneginf()
    error = ((found[:, rows].double() - exact) / exact.clamp(min=1e-30))[there].abs().max()
    allowed = ((plain.double() - exact) / exact.clamp(min=1e-30))[there].abs().max()
    assert torch.equal(found[:, rows].isneginf(), exact.isneginf())
    # ex2.approx is good to 2 ulp, torch.exp to 1.
    assert error <= 2 * allowed + 1e-6


if __name__ == "__main__":
    run_checks(check_against_the_definition, check_future_keys_and_positions_in_memory, check_nothing_to_do)
