"""Random numbers from a counter: published values, range and spread."""

from __future__ import annotations

import pytest
import torch

from salalocal_kernels import random_uniform


def draw(seed: int, counter: int) -> float:
    return float(random_uniform(torch.tensor([seed]), torch.tensor([counter])))


def test_the_published_values_of_philox() -> None:
    """Random123's known answers for philox4x32-10: key and counter 0 give 6627e8d5 e169c58d."""
    assert draw(0, 0) == ((0x6627E8D5 >> 5 << 26) + (0xE169C58D >> 6)) / 2**53


def test_numbers_follow_from_seed_and_counter() -> None:
    assert draw(5, 7) == draw(5, 7)
    assert len({draw(seed, counter) for seed in (0, 1, 1 << 32, (1 << 63) - 1) for counter in (0, 1, 2**31 - 1)}) == 12


def test_they_are_spread_evenly() -> None:
    numbers = torch.tensor([draw(3, counter) for counter in range(4000)], dtype=torch.float64)
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(numbers.var()) == pytest.approx(1 / 12, abs=0.005)
