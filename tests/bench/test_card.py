"""What `bench machine` takes of a GPU: rates from the timed kernels, and on a GPU all of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from salalocal.bench import card
from salalocal.bench.card import KernelRates, measure_card, rates_of
from salalocal.bench.clock import Ceilings
from salalocal.bench.made_model import released_config
from salalocal.bus_times import Bus
from salalocal.cache.tiered_store import TieredStore
from salalocal.model.pieces import attend_in_pieces
from salalocal.times import predict

BUS = Bus(5e10, 5e10, 4e10, 1e-5, 1e-8, 1e-10)
CEILINGS = Ceilings("a card", 2.92e12, 4.9e10, {"bf16": 680e12, "fp8": 1285e12})
# As timed on an H100, docs/performance.md.
KERNELS = KernelRates(row_bytes=2.37e12, channels=3.46e10, attention_flop=245e12, scoring_flop=356e12)


def test_rates_of_a_card() -> None:
    rates = rates_of(CEILINGS, KERNELS, BUS, 1e-4)
    assert (rates.matmul_flop, rates.memory_bytes, rates.sparse_flop) == (680e12, 2.37e12, 245e12)
    assert (rates.narrow_flop, rates.bus, rates.layer_chunk_seconds) == ({"fp8": 1285e12}, BUS, 1e-4)
    expected = predict(released_config(), rates, 1 << 18, 8192, 2, unpacked=False)
    assert expected.first_token_seconds == pytest.approx(9.42, rel=0.15)
    assert expected.tokens_per_second == pytest.approx(1e3 / 2.95, rel=0.15)


def test_pieces_that_are_timed_add_up_to_the_whole() -> None:
    pages = torch.randn(10, 2, 2, 4, 8)
    q = torch.randn(3, 4, 8)
    blocks = torch.arange(10, dtype=torch.int32).expand(2, 3, 10)
    outs = [attend_in_pieces(q, blocks, card._cut(pages, number), 37, 0.3) for number in (1, 4)]
    assert [(piece.first, piece.stop) for piece in card._cut(pages, 4)] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    torch.testing.assert_close(*outs)


def test_a_timed_fetch_finds_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stores: list[TieredStore] = []

    def make(*arguments: object, **named: object) -> TieredStore:
        stores.append(TieredStore(*arguments, **named))  # type: ignore[arg-type]
        return stores[-1]

    def call_often(call: Callable[[], object], turns: int) -> float:
        for _ in range(2 * turns):
            call()
        return 250.0

    monkeypatch.setattr(card, "TieredStore", make)
    monkeypatch.setattr(card, "milliseconds", call_often)
    assert card._fetch_seconds(released_config(), 2, torch.device("cpu")) == 0.25
    traffic = stores[0].traffic
    assert (traffic.hits, traffic.misses) == (0, 2 * 12 * 2 * 2)


def test_a_piece_more_is_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([3.0, 11.0])

    def call_once(call: Callable[[], object]) -> float:
        call()
        return next(taken)

    monkeypatch.setattr(card, "milliseconds", call_once)
    monkeypatch.setattr(card, "_PIECE_QUERIES", 64)
    monkeypatch.setattr(card, "_PIECES_TOKENS", 1 << 14)
    assert card._piece_token_seconds(released_config(), torch.device("cpu")) == pytest.approx(8e-3 / 8 / 64)


def test_nothing_is_page_locked_for_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "_LOCKED_BYTES", 1 << 21)
    assert card._lock_byte_seconds(released_config(), torch.device("cpu")) == 0.0


@pytest.mark.gpu
def test_a_card_is_measured() -> None:
    hardware, rates = measure_card(1e-4)
    assert hardware.written_bytes_per_second is not None
    assert rates.bus is not None
    assert rates.bus.lock_byte_seconds > 0
    assert 1e9 < rates.bus.gather_bytes < 2 * rates.bus.read_bytes
    assert 0 <= rates.bus.fetch_seconds < 1e-3
    assert 0 < rates.bus.piece_token_seconds < 1e-5
    assert 0.3 < rates.memory_bytes / hardware.copy_bytes_per_second < 1.1
    assert rates.sparse_flop < rates.matmul_flop
    assert rates.score_flop < rates.matmul_flop
    assert all(math.isfinite(value) for value in vars(rates).values() if isinstance(value, float))
