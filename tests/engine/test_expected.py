"""What an engine says of a prompt before it reads it: seconds, and settings in which it would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import salalocal
from salalocal import choices, kv_tiers, machine
from salalocal.bus_times import Bus
from salalocal.config import ModelConfig
from salalocal.engine import engine as engine_module
from salalocal.engine import load as load_module
from salalocal.engine.devices import device_name
from salalocal.engine.engine import Engine
from salalocal.errors import DoesNotFit
from salalocal.forecast import Place, Plan, Setting, kv_away, make_plan
from salalocal.hub import find_config
from salalocal.machine import Hardware, Machine
from salalocal.times import Rates, predict

M2 = Path(__file__).parents[1] / "golden" / "models" / "m2"
RATES = Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002)


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What was measured of this machine."""
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path))
    name = device_name(torch.device("cpu"))
    hardware = Hardware(1e12, 2e10, 1e10, None, None)
    measured = Machine("cpu", name, "float32", "2026-01-02 03:04:05", 0.0, hardware, "a model", (), RATES)
    machine.save(measured)
    return measured


def load(**options: object) -> Engine:
    return salalocal.load(M2, device="cpu", dtype="float32", **options)  # type: ignore[arg-type]


def test_seconds_are_those_of_the_plan() -> None:
    engine = load()
    expected = predict(engine.config, RATES, 5000, engine.default_chunk, 4, unpacked=True)
    assert engine.expected_times(5000) == expected


def test_nothing_is_said_without_rates_of_this_device_and_dtype(known: Machine) -> None:
    engine = load()
    machine.save(replace(known, dtype="bfloat16"))
    assert engine.expected_times(5000) is None
    machine.record_path("cpu").unlink()
    assert engine.expected_times(5000) is None


def test_with_k_and_v_in_host_memory_the_bus_must_be_known(known: Machine) -> None:
    engine = load(kv_budget=1 << 20)
    assert engine.expected_times(5000) is None
    rates = replace(RATES, bus=Bus(1e9, 1e9, 1e9, 1e-5, 1e-8, 1e-10))
    machine.save(replace(known, rates=rates))
    shares = kv_tiers.tiers(engine.config, 4, 1 << 20)
    away = kv_away(engine.config, 4, shares)
    expected = predict(engine.config, rates, 5000, engine.default_chunk, 4, unpacked=True, away=away)
    assert engine.expected_times(5000) == expected


def test_a_way_out_is_a_setting_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = salalocal.load("salalocal-pocket", device="cpu", dtype="float32")
    assert engine.way_out(1 << 29) is None, "what is packed cannot be packed again"
    engine = load()
    monkeypatch.setattr(engine_module, "available_bytes", lambda _: 64 << 20)
    longest = engine.max_context_tokens()
    way_out = engine.way_out(longest + 1)
    assert way_out is None or "salalocal quantize" in way_out


def test_a_way_out_is_a_cap_that_puts_keys_and_values_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    near = Setting(None, 2000, 1, None, 0, gpu_memory=69 << 28)
    planned = replace(make_plan(engine.config, 1500, Place(True, 4, 1 << 20, None)), nearest=(near,))
    assert not planned.fits
    monkeypatch.setattr(engine_module, "make_plan", lambda *_: planned)
    assert engine.way_out(1500) == "with --gpu-memory 17.25GiB keys and values go to main memory, where it fits"
    assert engine.way_out(2001) is None


def test_an_embedding_table_in_main_memory_gives_the_device_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, asked = load(), []

    def plan(config: ModelConfig, tokens: int, place: Place) -> Plan:
        asked.append(place.usable_bytes)
        return make_plan(config, tokens, place)

    monkeypatch.setattr(engine_module, "make_plan", plan)
    monkeypatch.setattr(engine_module, "available_bytes", lambda _: 64 << 20)
    engine.way_out(1000)
    engine._sizes = replace(engine._sizes, has_host_table=True)
    engine.way_out(1000)
    table = 4 * engine.config.vocab_size * engine.config.hidden_size
    assert asked == [(64 << 20) + engine.weight_bytes, (64 << 20) + engine.weight_bytes - table]


def test_a_refused_model_is_told_how_to_pack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "available_bytes", lambda _: 1 << 20)
    with pytest.raises(DoesNotFit, match="close other programs or take a smaller model"):
        load()
    monkeypatch.setattr(choices, "mildest_packing", lambda *_: "int8")
    with pytest.raises(DoesNotFit, match="or pack it: 'salalocal quantize --format int8' fits"):
        load()


@pytest.mark.parametrize(("gib", "packing"), [(12, "int8"), (8, "int4"), (4, None)])
def test_the_mildest_packing_that_fits(gib: int, packing: str | None) -> None:
    config = salalocal.config.ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))
    assert choices.mildest_packing(config, 2, 2048, gib << 30) == packing
