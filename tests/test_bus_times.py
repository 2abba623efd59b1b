"""Waiting for main memory, by hand: history of chunks, pieces, and blocks that steps fetch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from salalocal.bus_times import Away, Bus, fetching_seconds, missing_blocks, waiting_seconds
from salalocal.config import ModelConfig
from salalocal.hub import find_config

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))
BUS = Bus(
    read_bytes=5e10,
    write_bytes=5e10,
    gather_bytes=4e10,
    fetch_seconds=1e-5,
    piece_token_seconds=0.0,
    lock_byte_seconds=0.0,
)
# 8 layers x 2 kv heads x 128 x K and V x 2 bytes; buffers of 64 MiB, and slots for 512 blocks.
AWAY = Away(token_bytes=8192.0, staged_blocks=1024, slots=512)
M = 1 << 20


def waiting(
    bus: Bus = BUS,
    away: Away = AWAY,
    *,
    tokens: int = M,
    chunk: int = 8192,
    score: float = 1e-5,
    attention: float = 0.0,
) -> float:
    return waiting_seconds(RELEASED, bus, away, tokens, chunk, 2e-5, score, attention)


def test_history_passes_once_for_each_chunk() -> None:
    # With hardly any buffer everything is waited for: N^2 / 2C x 8 KiB, less half a chunk for each.
    chunks = M // 8192
    moved = 8192 * 8192 * chunks * (chunks - 1) // 2
    assert waiting(away=replace(AWAY, staged_blocks=1), tokens=M) == pytest.approx(moved / 5e10, rel=1e-2)
    # Chunks of a quarter move four times as much.
    assert waiting(away=replace(AWAY, staged_blocks=1), chunk=2048) == pytest.approx(4 * moved / 5e10, rel=0.01)


def test_what_the_buffers_hold_comes_while_other_layers_compute() -> None:
    without = waiting(away=replace(AWAY, staged_blocks=1))
    ahead = 2 * 1024 * 64 * 8192 / 5e10
    # The first 17 chunks have no more history than that.
    assert waiting() == pytest.approx(without - ahead * (M // 8192) + ahead * 8.5, rel=1e-2)
    assert waiting(tokens=16 * 8192) == 0


def test_a_layer_right_behind_another_hides_little() -> None:
    """Layers 0, 9, 16, 17, 22, 29, 30 and 31: three are behind another, and none is before the first."""
    ample = replace(AWAY, staged_blocks=M // 64)
    history = (M - 8192) * 1024 / 5e10
    last = waiting(away=ample, score=0.0) - waiting(away=ample, score=0.0, tokens=M - 8192)
    layer = 8192 * 2e-5 / 32
    assert last == pytest.approx(4 * history - 3 * layer, rel=1e-3)
    # Scores alone cover it: on the average of a text 2 us a token and layer, twice that at its end.
    assert waiting(away=ample, score=8 * 2e-6) == 0


def test_attention_and_the_bus_overlap() -> None:
    assert 0 < waiting(attention=4e-6) < waiting()
    assert waiting(attention=1.0) == 0


def test_pieces_cost_launches() -> None:
    bus = replace(BUS, piece_token_seconds=1e-7)
    # 64K tokens are one buffer; 128K are, from the ninth chunk on, one or two pieces and the chunk itself.
    assert waiting(bus, tokens=1 << 16) == 0
    assert waiting(bus, tokens=1 << 17) == pytest.approx(8 * 8192 * 1e-7 * (2 + 7 * 3))


def test_memory_is_page_locked_once() -> None:
    bus = replace(BUS, lock_byte_seconds=1e-10)
    assert waiting(bus, tokens=1 << 16) == pytest.approx(65536 * 8192 * 1e-10)
    assert waiting(bus) == pytest.approx(waiting() + M * 8192 * 1e-10)


def test_a_step_fetches_what_is_missing() -> None:
    assert missing_blocks(RELEASED, AWAY, M) == pytest.approx(0.13 * 63 * 2 * 8)
    assert fetching_seconds(RELEASED, BUS, AWAY, M) == pytest.approx(16e-5 + 0.13 * 63 * 16 * 32768 / 4e10)
    measured = replace(AWAY, hit_rate=1.0)
    assert fetching_seconds(RELEASED, BUS, measured, M) == pytest.approx(16e-5)


def test_short_contexts_stay_on_the_card() -> None:
    assert missing_blocks(RELEASED, AWAY, 512 * 64 // 2) == 0
    assert missing_blocks(RELEASED, AWAY, 512 * 64 // 2 + 1) > 0
