"""A run of `bench long` with small models in the place of the full-size ones, and a card that is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import PEER_SHAPE, small_config

from salalocal import machine
from salalocal.bench import long_run
from salalocal.bench.clock import Ceilings
from salalocal.bench.dense_peer import DensePeer
from salalocal.bench.long import Plan
from salalocal.bench.long_rows import LongRow, LongTable
from salalocal.bench.long_run import time_long
from salalocal.bench.made_model import make_network
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.times import Rates

CPU = torch.device("cpu")
CEILINGS = Ceilings("a card", 2e12, 5e10, {"bf16": 7e14})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What was set, measured and made, in order."""
    found: list[tuple[object, ...]] = []
    config = small_config()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(long_run, "lift_cap", lambda _: found.append(("no cap",)))
    monkeypatch.setattr(long_run, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(long_run, "let_go", lambda _: None)
    monkeypatch.setattr(long_run, "available_bytes", lambda _: 8 << 30)
    monkeypatch.setattr(long_run, "scoring_seconds", lambda _, tokens: found.append(("scores", tokens)) or 1e-11)
    monkeypatch.setattr(long_run, "released_config", lambda: config)
    monkeypatch.setattr(long_run, "cap", lambda _, most, weights, name: found.append(("cap", most, weights > 0, name)))

    def make(*_: object, **_options: object) -> object:
        found.append(("model",))
        return make_network(config, torch.float32, CPU)

    def make_peer(*_: object) -> DensePeer:
        found.append(("peer",))
        return DensePeer(PEER_SHAPE, torch.float32, CPU)

    monkeypatch.setattr(long_run, "make_network", make)
    monkeypatch.setattr(long_run, "DensePeer", make_peer)
    return found


def run(plan: Plan, peers: tuple[int, ...], table: LongTable) -> list[LongRow]:
    told: list[LongRow] = []
    time_long(plan, peers, table, lambda _: None, told.append)
    return told


def test_ours_under_the_cap_then_the_peer_without(calls: list[tuple[object, ...]], tmp_path: Path) -> None:
    table = LongTable(tmp_path / "rows.json")
    plan = Plan((128, 256), chunk_tokens=64, gpu_memory=8 << 30, prefill="int8", steps=2)
    rows = run(plan, (64,), table)
    assert [(row.model, row.tokens) for row in rows] == [("salalocal", 128), ("salalocal", 256), ("dense peer", 64)]
    cap = ("cap", 8 << 30, True, "the made-up model")
    assert calls == [cap, ("scores", 256), ("model",), ("no cap",), ("peer",)]
    assert {row.run for row in rows} == set(table.runs)
    (facts,) = table.runs.values()
    assert (facts["scoring_seconds_per_square"], facts["device"]) == (1e-11, "a card")
    # Nothing is missing any more: nothing is measured and nothing made.
    calls.clear()
    assert run(plan, (64,), LongTable(tmp_path / "rows.json")) == []
    assert calls == [cap, ("no cap",)]
    calls.clear()
    run(plan, (32,), LongTable(tmp_path / "rows.json"))
    assert calls == [cap, ("no cap",), ("peer",)]


@pytest.mark.usefixtures("calls")
def test_rates_of_this_card_are_taken_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002)
    asked: list[tuple[str, str]] = []

    def recall(kind: str, name: str) -> object:
        asked.append((kind, name))
        return SimpleNamespace(rates=rates)

    monkeypatch.setattr(machine, "recall", recall)
    (row,) = run(Plan((128,), chunk_tokens=64, steps=2), (), LongTable(None))
    assert asked == [("cuda", "a card")]
    assert row.planned_seconds is not None


def test_weights_above_the_cap(calls: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DoesNotFit("too large", needed_bytes=2, available_bytes=1)

    monkeypatch.setattr(long_run, "cap", refuse)
    with pytest.raises(DoesNotFit):
        run(Plan((128,), gpu_memory=1 << 30), (), LongTable(None))
    assert ("model",) not in calls


@pytest.mark.usefixtures("calls")
def test_an_8_bit_format_that_the_card_lacks() -> None:
    with pytest.raises(InvalidRequest, match="fp8 needs a GPU of compute capability"):
        run(Plan((128,), prefill="fp8"), (), LongTable(None))


@pytest.mark.usefixtures("calls")
def test_8_bits_of_keys_and_values_that_stay_on_the_card() -> None:
    with pytest.raises(InvalidRequest, match="kv in int8 is for K and V in main memory: give --gpu-memory"):
        run(Plan((128,), kv="int8"), (), LongTable(None))
    with pytest.raises(InvalidRequest, match="--unpinned is for K and V in main memory: give --gpu-memory"):
        run(Plan((128,), is_pinned=False), (), LongTable(None))
