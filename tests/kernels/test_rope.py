"""rope against hand-computed numbers and a loop over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numbers_of import as_array, assert_close, dtypes, random, strided

from salalocal_kernels import rope


def naive(x: np.ndarray, first_position: int, theta: float) -> np.ndarray:
    tokens, heads, dim = x.shape
    out = np.empty_like(x)
    for t in range(tokens):
        for i in range(dim // 2):
            frequency = np.float32(1.0) / np.float32(theta) ** np.float32(2 * i / dim)
            # The angle is a float32 product, like the vendor's tables.
            angle = float(np.float32(first_position + t) * frequency)
            for h in range(heads):
                low, high = x[t, h, i], x[t, h, i + dim // 2]
                out[t, h, i] = low * math.cos(angle) - high * math.sin(angle)
                out[t, h, i + dim // 2] = high * math.cos(angle) + low * math.sin(angle)
    return out


def test_by_hand() -> None:
    # D = 2: one pair, frequency 1; position 2 turns (1, 0) by 2 radians.
    out = rope(torch.tensor([[[1.0, 0.0]]]), 2, 10000.0)
    assert out.flatten().tolist() == pytest.approx([math.cos(2), math.sin(2)], rel=1e-6)


def test_halves_not_neighbours_form_pairs() -> None:
    out = rope(torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]), 1, 10000.0).flatten().tolist()
    assert out == pytest.approx([math.cos(1), 0, math.sin(1), 0], abs=1e-6)


def test_position_0_changes_nothing() -> None:
    x = random(1, 3, 8, dtype=torch.float32)
    assert torch.equal(rope(x, 0, 10000.0), x)


@dtypes
@pytest.mark.parametrize("dim", [2, 6, 16])
@pytest.mark.parametrize("first_position", [0, 1, 4097])
@pytest.mark.parametrize("tokens", [1, 5])
def test_against_a_loop(dtype: torch.dtype, dim: int, first_position: int, tokens: int) -> None:
    x = random(tokens, 3, dim, dtype=dtype)
    # float32 powers of numpy and torch may differ in the last bit, which position 4097 magnifies.
    expected = naive(as_array(x), first_position, 10000.0)
    found = rope(strided(x), first_position, 10000.0)
    if dtype == torch.float64 or first_position > 1000:
        assert np.abs(as_array(found) - expected).max() < (1e-3 if dtype != torch.bfloat16 else 0.05)
    else:
        assert_close(found, expected, "out", dtype)


def test_pieces_equal_the_whole() -> None:
    x = random(9, 2, 8, dtype=torch.float32)
    pieces = [rope(x[:4], 100, 1e4), rope(x[4:5], 104, 1e4), rope(x[5:], 105, 1e4)]
    assert torch.equal(torch.cat(pieces), rope(x, 100, 1e4))


def test_angles_are_formed_in_float32_in_a_float64_run() -> None:
    position = 300_001
    # D = 4: the second pair turns by theta^(-1/2) = 0.01 per token.
    found = rope(torch.tensor([[[0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64), position, 10000.0).flatten()
    angle = float(np.float32(position) * np.float32(0.01))
    assert found[1].item() == pytest.approx(math.cos(angle), abs=1e-12)
    assert abs(math.cos(angle) - math.cos(position * 0.01)) > 1e-6, "this position does not tell the two apart"


def test_offset_beyond_two_to_the_31() -> None:
    out = rope(torch.ones(2, 1, 4, dtype=torch.float64), (1 << 31) + 5, 1e6)
    assert out.isfinite().all()
    assert out.square().sum(-1) == pytest.approx(4.0)
