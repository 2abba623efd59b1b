"""The block top-k against sorted lists, and against hand-computed picks; ties go to the lower index."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from torch import Tensor

from salalocal_kernels import select_blocks


def naive(
    scores: Tensor, first_position: int, block_size: int, init_blocks: int, local_blocks: int, k: int
) -> list[list[list[int]]]:
    result = []
    for rows in scores.tolist():
        picks = []
        for t, row in enumerate(rows):
            own = (first_position + t) // block_size
            forced = {b for b in range(len(row)) if b < init_blocks or own - local_blocks <= b <= own}
            order = sorted(range(len(row)), key=lambda b: (b not in forced, -row[b], b))
            taken = sorted(b for b in order[:k] if b <= own)
            picks.append(taken + [-1] * (k - len(taken)))
        result.append(picks)
    return result


def test_by_hand() -> None:
    # 8 blocks of 2, query 13 (own block 6), first block and one before the own are forced, 5 in all: 2 free picks.
    scores = torch.tensor([[[0.0, 3.0, 1.0, 3.0, 2.0, 0.5, 9.0, 0.0]]])
    assert select_blocks(scores, 13, 2, 1, 1, 5).tolist() == [[[0, 1, 3, 5, 6]]]


def test_ties_go_to_the_lower_index() -> None:
    scores = torch.zeros(1, 1, 2000)
    assert select_blocks(scores, 1999, 1, 1, 2, 8).tolist() == [[[0, 1, 2, 3, 4, 1997, 1998, 1999]]]
    scores[..., 700:1200] = 1.0
    assert select_blocks(scores, 1999, 1, 1, 2, 8).tolist() == [[[0, 700, 701, 702, 703, 1997, 1998, 1999]]]


def test_a_future_block_takes_a_slot_but_is_not_read() -> None:
    # Own block 1; blocks 2 and 3 are the future. Three slots: 0 and 1 forced, the third goes to the future and is lost.
    scores = torch.tensor([[[0.0, 0.0, 5.0, 7.0]]])
    assert select_blocks(scores, 1, 1, 1, 0, 3).tolist() == [[[0, 1, -1]]]


def test_forced_blocks_win_over_infinite_scores() -> None:
    scores = torch.full((1, 1, 6), torch.inf)
    assert select_blocks(scores, 5, 1, 1, 1, 4).tolist() == [[[0, 1, 4, 5]]]


def test_empty_blocks_come_last() -> None:
    scores = torch.tensor([[[-torch.inf, -torch.inf, 0.0, 1.0, 0.0, 0.0]]])
    assert select_blocks(scores, 5, 1, 0, 0, 3).tolist() == [[[2, 3, 5]]]
    assert select_blocks(scores, 5, 1, 0, 0, 5).tolist() == [[[0, 2, 3, 4, 5]]]


@pytest.mark.parametrize("k", [1, 3, 4, 100])
def test_fewer_blocks_than_k(k: int) -> None:
    found = select_blocks(torch.zeros(2, 3, 4), 5, 2, 0, 0, k)
    assert found.shape == (2, 3, k)
    assert found.dtype == torch.int32
    assert found.tolist() == naive(torch.zeros(2, 3, 4), 5, 2, 0, 0, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("levels", [2, 5, 1000], ids=lambda levels: f"{levels} distinct scores")
@pytest.mark.parametrize(
    ("first", "tokens", "block_size"), [(0, 1, 1), (0, 40, 3), (15, 1, 16), (16, 2, 16), (100, 33, 4), (331, 70, 8)]
)
@pytest.mark.parametrize(("init", "local", "k"), [(0, 0, 1), (1, 4, 8), (2, 0, 5), (1, 32, 96)])
def test_against_sorted_lists(
    dtype: torch.dtype, levels: int, first: int, tokens: int, block_size: int, init: int, local: int, k: int
) -> None:
    num_blocks = -(-(first + tokens) // block_size)
    scores = (random(2, tokens, num_blocks, seed=k).abs() * levels / 3).floor().to(dtype)
    scores[..., -1] = -torch.inf
    found = select_blocks(strided(scores), first, block_size, init, local, k)
    assert found.tolist() == naive(scores, first, block_size, init, local, k)


def test_scores_are_not_written_to() -> None:
    scores = random(1, 4, 9)
    before = scores.clone()
    select_blocks(scores, 5, 1, 1, 1, 4)
    assert torch.equal(scores, before)
