"""Kept figures come back as they were, and only on the device and the version that they are of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from salalocal.bus_times import Bus
from salalocal.errors import InvalidRequest
from salalocal.machine import Hardware, Machine, Reading, recall, record_path, save
from salalocal.times import Rates

CPU = Machine(
    device="cpu",
    device_name="a processor, 2 cores",
    dtype="bfloat16",
    measured_at="2026-01-02 03:04:05",
    others_share=0.25,
    hardware=Hardware(1e12, 2e10, 1e10, None, None),
    model="salalocal-pocket",
    readings=(Reading(0, 1900.0, None), Reading(16384, 900.0, 40.5)),
    rates=Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002),
)
CARD = replace(
    CPU,
    device="cuda",
    device_name="a card",
    hardware=Hardware(7e14, 3e12, 2e12, 5e10, 1e10, 4e10, 3e10, 9e14, None),
    rates=replace(
        CPU.rates, layer_chunk_seconds=1e-4, narrow_flop={"int8": 1e15}, bus=Bus(5e10, 4e10, 3e10, 1e-5, 1e-7, 1e-10)
    ),
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path / "home"))


def test_round_trip_by_device() -> None:
    assert recall("cpu", CPU.device_name) is None
    assert save(CPU) == record_path("cpu")
    save(CARD)
    assert recall("cpu", CPU.device_name) == CPU
    assert recall("cuda", "a card") == CARD


def test_another_device_was_not_measured() -> None:
    save(CPU)
    assert recall("cpu", "another processor, 8 cores") is None
    assert recall("cuda", CPU.device_name) is None


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"rates": {}}, {"readings": 3}, {"others_share": 2}, {"measured_at": None}, {"hardware": None}],
    ids=str,
)
def test_a_file_of_another_shape_counts_as_none(change: dict[str, object]) -> None:
    path = save(CPU)
    path.write_text(json.dumps({**CPU.as_json(), **change}))
    assert recall("cpu", CPU.device_name) is None


def test_a_damaged_file_counts_as_none_and_is_replaced() -> None:
    path = save(CPU)
    path.write_text("{")
    assert recall("cpu", CPU.device_name) is None
    save(CPU)
    assert recall("cpu", CPU.device_name) == CPU


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path / "file"))
    with pytest.raises(InvalidRequest, match=r"machine-cpu\.json: cannot be written .*SALALOCAL_HOME"):
        save(CPU)
