"""`salalocal plan` and `salalocal bench machine`: what is said, in which numbers, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from scripted import Run

from salalocal import machine as records
from salalocal.bench import machine as bench
from salalocal.bus_times import Bus
from salalocal.byte_sizes import human_size
from salalocal.machine import Hardware, Machine, Reading, record_path
from salalocal.times import Rates

RELEASED = "openbmb/MiniCPM-SALA"
M = 1 << 20
CPU = Machine(
    device="cpu",
    device_name="a processor, 2 cores",
    dtype="bfloat16",
    measured_at="2026-01-02 03:04:05",
    others_share=0.0,
    hardware=Hardware(1e12, 2e10, 1e10, None, None),
    model="salalocal-pocket",
    readings=(Reading(0, 1900.0, None), Reading(16384, 900.0, 40.5)),
    rates=Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002),
)


@pytest.fixture(autouse=True)
def _main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine and at every moment."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 << 30, total=64 << 30))


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the machine was measured; it has no GPU, an own home, and 64 GiB free."""
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("salalocal.engine.devices.device_name", lambda _: CPU.device_name)
    monkeypatch.setattr("salalocal.engine.out_of_memory.available_bytes", lambda _: 64 << 30)
    calls: list[str] = []

    def measure(device: str = "auto", on_part: object = None) -> Machine:
        del on_part
        calls.append(device)
        return CPU

    monkeypatch.setattr(bench, "measure_machine", measure)
    return calls


def test_the_machine_is_measured_once(run: Run, measured: list[str]) -> None:
    first = run("plan", "salalocal-pocket", "--context", "64K")
    assert first.code == 0
    assert "has not been measured yet: that is done once now" in first.err
    assert measured == ["cpu"]
    again = run("plan", "salalocal-pocket", "--context", "64K")
    assert "done once now" not in again.err
    assert measured == ["cpu"]
    assert again.out == first.out


def test_tokens_as_tables_write_them(run: Run, measured: list[str]) -> None:
    del measured
    assert "salalocal-pocket, 1,000,000 tokens, " in run("plan", "salalocal-pocket", "--context", "1,000,000").out
    assert "one length is planned at a time" in run("plan", "salalocal-pocket", "--context", "1000,2000").err


def test_a_table_for_people(run: Run, measured: list[str]) -> None:
    del measured
    outcome = run("plan", RELEASED, "--context", "1M")
    lines = outcome.out.splitlines()
    assert lines[0].startswith(f"{RELEASED}, 1,048,576 tokens, ")
    labels = [line[:16].rstrip() for line in lines[3:10]]
    assert labels == [
        "weights", "keys and values", "compressed keys", "linear states", "workspace", "together", "usable",
    ]  # fmt: skip
    assert lines[10].split()[:4] == ["saved", "session", "-", "-"]
    assert "It fits; the longest context that does is " in outcome.out
    assert "The answer begins after about " in outcome.out
    assert "rates measured with salalocal-pocket on 2026-01-02 03:04:05 UTC (a processor, 2 cores)" in outcome.err
    assert "512K" not in outcome.err
    assert "the model was made for 524,288 tokens" in outcome.err


def test_a_busy_machine_is_mentioned(run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del measured
    monkeypatch.setattr(bench, "measure_machine", lambda _: replace(CPU, others_share=0.4))
    assert "other programs took 40% of the processor meanwhile" in run("plan", "salalocal-pocket").err


def test_one_json_object(run: Run, measured: list[str]) -> None:
    del measured
    data = run("plan", RELEASED, "--context", "64K", "--json").data
    assert (data["fits"], data["obstacle"], data["nearest"], data["device"]) == (True, None, [], "cpu")
    assert sum(data["bytes"]["host"].values()) == data["total_bytes"] <= data["usable_bytes"] == 64 << 30
    assert set(data["bytes"]["gpu"].values()) == {0}
    assert data["times"]["first_token_seconds"] > 0
    assert data["saved_bytes"] > 64 * 1024 * 8192
    assert data["rates"]["measured_at"] == CPU.measured_at
    assert data["rates"]["sparse_flop"] == CPU.rates.sparse_flop


def test_a_gpu_that_is_not_here(run: Run, measured: list[str]) -> None:
    outcome = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "24GiB")
    assert outcome.code == 0
    assert measured == []
    assert re.search(r"keys and values +[\d.]+ GiB +9\.0 GiB", outcome.out)
    assert "It fits; the longest context that does is" in outcome.out
    assert "keys and values are in main memory" in outcome.err
    assert "no times: they come from rates measured on the GPU itself" in outcome.err
    data = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "24GiB", "--json").data
    assert (data["fits"], data["nearest"]) == (True, [])
    assert (data["device"], data["dtype"], data["times"], data["rates"]) == ("cuda", "bfloat16", None, None)
    assert sum(data["bytes"]["gpu"].values()) == data["total_bytes"]
    assert [name for name, count in data["bytes"]["host"].items() if count] == ["keys_and_values"]
    # What is left on the GPU when compressed keys of two million tokens have their room: 360 bytes each.
    assert data["usable_bytes"] - data["total_bytes"] == 360 << 20
    assert data["longest_context_tokens"] == 2 << 20


def test_8_bits_in_main_memory(run: Run, measured: list[str]) -> None:
    del measured
    outcome = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "24GiB", "--kv", "int8")
    assert outcome.code == 0
    assert re.search(r"keys and values +[\d.]+ GiB +4\.6 GiB", outcome.out)
    assert "keys and values are in main memory, in int8" in outcome.err
    assert run("plan", RELEASED, "--gpu-memory", "24GiB", "--kv", "fp8", "--json").data["kv"] == "fp8"
    outcome = run("plan", RELEASED, "--gpu-memory", "80GiB", "--kv", "int8")
    assert outcome.code == 2
    assert "`load` keeps them on the device here: give a gpu_memory of 30.25GiB or less, or leave kv out" in outcome.err


def test_a_cap_on_the_gpu_here(run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del measured
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = replace(CPU, device="cuda", rates=replace(CPU.rates, bus=Bus(5e10, 5e10, 4e10, 1e-5, 1e-8, 1e-10)))
    monkeypatch.setattr(bench, "measure_machine", lambda _: card)
    outcome = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "24GiB")
    assert outcome.code == 0
    assert "The answer begins after about " in outcome.out
    assert "of the blocks that a step selects freely 87% are assumed to be on the GPU already" in outcome.err
    assert "rates measured with our kernels at the sizes of MiniCPM-SALA on 2026-01-02" in outcome.err
    records.save(replace(card, rates=CPU.rates))
    outcome = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "24GiB")
    assert "The answer begins" not in outcome.out
    assert "no times: CUDA did not register main memory" in outcome.err


def test_a_small_gpu_that_is_not_here(run: Run, measured: list[str]) -> None:
    outcome = run("plan", RELEASED, "--context", "1M", "--gpu-memory", "8GiB")
    assert outcome.code == 1
    assert measured == []
    assert "It does not fit: 28.5 GiB are needed and 7.1 GiB usable. What does:" in outcome.out
    packed = "packed ('salalocal quantize --format int4'), 1,048,576 tokens in 6.8 GiB and 9.0 GiB of main memory"
    assert packed in outcome.out


def test_a_longer_context_with_a_smaller_cap(run: Run, measured: list[str]) -> None:
    """Of a million tokens all K and V fit on the GPU and stay there; of two million they do not fit."""
    del measured
    outcome = run("plan", RELEASED, "--context", "2M", "--gpu-memory", "32GiB")
    assert outcome.code == 1
    assert (
        "with --gpu-memory 30.25GiB, keys and values in main memory, 2,097,152 tokens in 28.3 GiB and 18.0 GiB of "
        in outcome.out
    )
    assert run("plan", RELEASED, "--context", "2M", "--gpu-memory", "30.25GiB").code == 0
    assert run("plan", RELEASED, "--context", "1M", "--gpu-memory", "30.25GiB", "--json").data["bytes"]["host"][
        "keys_and_values"
    ], "K and V of a million are in main memory under that cap"
    assert not any(
        run("plan", RELEASED, "--context", "1M", "--gpu-memory", "30.5GiB", "--json").data["bytes"]["host"].values()
    )


def test_nothing_fits(run: Run, measured: list[str]) -> None:
    del measured
    outcome = run("plan", RELEASED, "--gpu-memory", "2GiB")
    assert outcome.code == 1
    assert "No setting of this model fits" in outcome.out


def test_without_context_the_trained_length_is_planned(run: Run, measured: list[str]) -> None:
    del measured
    assert run("plan", "salalocal-pocket", "--json").data["context_tokens"] == 32768


def test_a_folder_with_nothing_but_a_config(run: Run, measured: list[str], tmp_path: Path) -> None:
    del measured
    from salalocal.hub import find_config

    (tmp_path / "sala").mkdir()
    (tmp_path / "sala" / "config.json").write_bytes(find_config(RELEASED).read_bytes())
    ours = run("plan", tmp_path / "sala", "--context", "64K", "--json").data
    released = run("plan", RELEASED, "--context", "64K", "--json").data
    assert ours["bytes"] == released["bytes"]
    (tmp_path / "sala" / "config.json").write_text(json.dumps({"model_type": "minicpm_sala"}))
    broken = run("plan", tmp_path / "sala")
    assert broken.code == 2
    assert "field num_attention_heads is missing" in broken.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("salalocal-pocket", "--context", "5G"), "--context: '5G' is no length; give tokens as in 8K,64K,1M"),
        (("salalocal-pocket", "--context", "0"), "--context: the length 0 is outside 1 to 1024M tokens"),
        (("salalocal-pocket", "--context", "8K,64K"), "--context is '8K,64K'; one length is planned at a time"),
        (("salalocal-pocket", "--gpu-memory", "lots"), "--gpu-memory is 'lots'; give a size as in 8GiB or 24GB"),
        (
            ("salalocal-pocket", "--gpu-memory", "0.5GiB"),
            "--gpu-memory is 0.5GiB; from 1.0 GiB to 4096.0 GiB can be given",
        ),
        (("salalocal-pocket", "--gpu-memory", "8GiB", "--device", "cpu"), "leave one of them out"),
        (("salalocal-pocket", "--device", "cuda"), "finds no usable NVIDIA GPU"),
        (("some/model",), "some/model: nothing is known of this hub id and nothing is downloaded for a plan"),
        (("nonsense",), "'nonsense' is neither a path nor a model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refusals_are_one_line(run: Run, measured: list[str], words: tuple[str, ...], message: str) -> None:
    outcome = run("plan", *words)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert message in outcome.error_lines[0]
    assert measured == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 MiB"), (1 << 29, "512.0 MiB"), (1 << 30, "1.0 GiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes(count: int, text: str) -> None:
    assert human_size(count) == text


def test_bench_machine(run: Run, measured: list[str]) -> None:
    outcome = run("bench", "machine", "--device", "cpu")
    assert outcome.code == 0
    assert measured == ["cpu"]
    assert str(record_path("cpu")) in outcome.err.replace("\n", "")
    rows = [line.split("  ")[0].strip() for line in outcome.out.splitlines()]
    assert rows == [
        "device", "products in bfloat16", "memory, copied", "memory, read", "salalocal-pocket, 0K",
        "salalocal-pocket, 16K", "taken by other programs",
    ]  # fmt: skip
    assert records.recall("cpu", CPU.device_name) == CPU
    assert run("bench", "machine", "--json").data == json.loads(json.dumps(CPU.as_json()))


def test_a_gpus_way_from_main_memory(run: Run, measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del measured
    card = replace(CPU, device="cuda", hardware=Hardware(7e14, 3e12, 2e12, 5e10, 1e10, 4e10, 3e10, 9e14))
    monkeypatch.setattr(bench, "measure_machine", lambda *_: card)
    out = run("bench", "machine").out
    assert "from main memory, pinned  50.0 GB/s" in out
    assert "not pinned                10.0 GB/s" in out
    assert "to main memory            40.0 GB/s" in out
    assert "single blocks from there  30.0 GB/s" in out
    assert "products in int8          900.0 TFLOP/s" in out
    assert "fp8" not in out
