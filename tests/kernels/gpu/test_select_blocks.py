"""The block top-k as a Triton kernel: bit for bit what the definition picks."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from sparse_gate import CHIPS, compile_for, run_checks, run_interpreted

from salalocal_kernels.ref.select_blocks import select_blocks as reference

pytest.importorskip("triton")

from salalocal_kernels.gpu import select_blocks as module


def check_random_scores_with_ties() -> None:
    for first, tokens, block_size in ((0, 1, 1), (0, 8, 3), (100, 3, 4), (331, 3, 2)):
        for init, local, k in ((0, 0, 1), (2, 0, 5), (1, 32, 96)):
            for levels in (2, 1000):
                num_blocks = -(-(first + tokens) // block_size)
                scores = (random(2, tokens, num_blocks, seed=k) * levels / 3).round().float()
                scores[..., -1] = -torch.inf
                scores = strided(scores)
                expected = reference(scores, first, block_size, init, local, k)
                found = module.select_blocks(scores, first, block_size, init, local, k)
                assert torch.equal(found, expected), (first, init, local, k, levels)


def check_infinities_zeros_and_future_blocks() -> None:
    inf = torch.inf
    rows = torch.tensor(
        [
            [0.0, 0.0, 5.0, 7.0, 1.0, 2.0],
            [inf, inf, inf, inf, inf, inf],
            [-0.0, 0.0, -0.0, 0.0, -0.0, 0.0],
            [-inf, -inf, -inf, -inf, -inf, -inf],
            [3.5e38, inf, 1e-45, 0.0, -1e-45, -inf],
        ]
    )[None]
    for first in (0, 1, 3, 5):
        for init, local, k in ((0, 0, 1), (1, 0, 3), (1, 1, 4), (2, 5, 4), (0, 0, 9)):
            arguments = (first, 1, init, local, k)
            assert torch.equal(module.select_blocks(rows, *arguments), reference(rows, *arguments)), arguments


def check_long_rows() -> None:
    for num_blocks in (4100, 5000, 9000, 40000):
        scores = random(1, 1, num_blocks, seed=3).abs().float()
        scores[..., 100:3000] = 2.0
        arguments = (num_blocks - 1, 1, 1, 32, 96)
        assert torch.equal(module.select_blocks(scores, *arguments), reference(scores, *arguments))


def check_long_rows_of_several_queries() -> None:
    for num_blocks in (4100, 9000):
        scores = random(1, 2, num_blocks, seed=4).abs().float()
        scores[:, 1, 3000:] = 2.0
        arguments = (num_blocks - 2, 1, 1, 32, 96)
        assert torch.equal(module.select_blocks(scores, *arguments), reference(scores, *arguments))


def check_a_long_row_that_is_mostly_in_the_future() -> None:
    for position in (50, 3000, 4095):
        scores = random(2, 1, 9000, seed=6).abs().float()
        scores[..., position + 1 :] = -torch.inf
        expected = reference(scores[..., : position + 1], position, 1, 1, 32, 96)
        assert torch.equal(module.select_blocks(scores, torch.tensor([position]), 1, 1, 32, 96), expected)


def check_a_position_in_memory() -> None:
    scores = random(1, 2, 30, seed=5).float()
    found = module.select_blocks(scores, torch.tensor([20]), 1, 1, 2, 6)
    assert torch.equal(found, reference(scores, 20, 1, 1, 2, 6))


def check_nothing_to_do() -> None:
    assert module.select_blocks(torch.zeros(2, 0, 7), 6, 1, 1, 1, 3).shape == (2, 0, 3)


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("width", "tail", "from_picks", "is_split"),
    [(512, 0, False, False), (32768, 0, False, False), (16384, 4096, False, False), (2048, 0, False, True),
     (1024, 0, True, False)],
)  # fmt: skip
def test_compiles(chip: int, width: int, tail: int, from_picks: bool, is_split: bool) -> None:
    constants = {"POSITION_IN_MEMORY": False, "BLOCK": 64, "INIT": 1, "LOCAL": 32, "K": 96, "K_PADDED": 128}
    types = {"scores_ptr": "*fp32", "picked_ptr": "*i32", "position": "i64"}
    # As launched on what block_scores returns: scores of a row adjacent.
    constants |= {"WIDTH": width, "TAIL": tail, "CHUNK": min(width, module._CHUNK), "stride_sn": 1}
    constants |= {"FROM_PICKS": from_picks, "IS_SPLIT": is_split}
    types |= {"picks_ptr": "*i32"}
    assert compile_for(chip, module._select_blocks_kernel, constants, types, module.warps(width), 1) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("num_blocks", [1, 95, 1024, 16384, 16600, 32768])
@pytest.mark.parametrize("levels", [3, 1 << 20])
@pytest.mark.parametrize("tokens", [1, 64])
def test_on_the_gpu(num_blocks: int, levels: int, tokens: int) -> None:
    generator = torch.Generator("cuda").manual_seed(num_blocks)
    scores = (torch.rand(2, tokens, num_blocks, generator=generator, device="cuda") * levels).floor() / levels
    arguments = (64 * (num_blocks - 1), 64, 1, 32, 96)
    assert torch.equal(module.select_blocks(scores, *arguments), reference(scores, *arguments))


@pytest.mark.gpu
def test_rows_past_2_to_the_31_on_the_gpu() -> None:
    tokens, num_blocks = 40000, 32768
    if torch.cuda.get_device_properties(0).total_memory < 20 << 30:
        pytest.skip("needs 12 GB")
    scores = torch.rand(2, tokens, num_blocks, device="cuda")
    arguments = (64 * num_blocks - tokens, 64, 1, 32, 96)
    found = module.select_blocks(scores, *arguments)
    last = slice(tokens - 4, tokens)
    expected = reference(scores[:, last], arguments[0] + tokens - 4, *arguments[1:])
    assert torch.equal(found[:, last], expected)


if __name__ == "__main__":
    run_checks(
        check_random_scores_with_ties,
        check_infinities_zeros_and_future_blocks,
        check_long_rows,
        check_long_rows_of_several_queries,
        check_a_long_row_that_is_mostly_in_the_future,
        check_a_position_in_memory,
        check_nothing_to_do,
    )
