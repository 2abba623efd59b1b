"""Published figures of cards, by hand, and what is made of them."""

from __future__ import annotations

import pytest

from salalocal.cards import CARDS, Card
from salalocal.config import ModelConfig
from salalocal.hub import find_config

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))


# TFLOP/s in bfloat16 with sums in float32, dense; of the first two as the whitepapers have them.
@pytest.mark.parametrize(("card", "published"), list(zip(CARDS, (209.5, 165.2, 25.5, 30.2), strict=True)))
def test_tensor_rates_are_the_published_ones(card: Card, published: float) -> None:
    assert card.matmul_flop / 1e12 == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_rate_is_above_the_published_one(card: Card) -> None:
    rates = card.rates(RELEASED)
    assert rates.memory_bytes < card.memory_bytes_per_second
    assert rates.sparse_flop < rates.matmul_flop < card.matmul_flop
    assert rates.narrow_flop["int8"] < 4 * card.matmul_flop
    assert rates.narrow_flop.get("fp8", 0) < 2 * card.matmul_flop
    assert ("fp8" in rates.narrow_flop) == card.has_fp8
    assert rates.bus is not None
    assert rates.bus.gather_bytes < rates.bus.read_bytes < 0.8 * card.pcie[1] * 4e9
