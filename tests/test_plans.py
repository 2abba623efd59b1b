"""`salalocal.plan`: the plan of the command line, for a caller; without torch, for here and for GPUs elsewhere."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

import salalocal
from salalocal import machine, plans
from salalocal.engine.devices import resolve_dtype
from salalocal.errors import InvalidRequest, ModelNotFound
from salalocal.hub import find_config
from salalocal.machine import Hardware, Machine
from salalocal.planner import usable_bytes, usable_gpu_bytes
from salalocal.times import Rates

RELEASED = "openbmb/MiniCPM-SALA"
GIB, M = 1 << 30, 1 << 20
RATES = Rates(1e12, 1e10, 1e7, 9e10, 4e10, 3e10, 0.002)


def measured(device: str, name: str) -> Machine:
    return Machine(
        device, name, "bfloat16", "2026-01-02 03:04:05", 0.0, Hardware(1e12, 2e10, 1e10, None, None), "a model", (),
        RATES,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine and at every moment."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 << 30, total=64 << 30))


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path))
    monkeypatch.setattr(plans, "_QUERY", ("no-such-tool",))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


@pytest.fixture
def gpu(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A card of which 20 GiB are free, and how it was asked for."""
    del no_gpu
    asked: list[tuple[str, ...]] = []

    def run(words: tuple[str, ...], **_options: object) -> object:
        asked.append(words)
        return SimpleNamespace(stdout=f"NVIDIA Card, with a comma, {20 << 10}\n")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cu130")
    monkeypatch.setattr(subprocess, "run", run)
    return asked


@pytest.mark.usefixtures("no_gpu")
class TestOnAProcessor:
    def test_what_is_free_counts(self) -> None:
        machine.save(measured("cpu", machine.processor_name()))
        planned = salalocal.plan(RELEASED, M)
        assert planned.fits
        assert planned.asked.tokens == M
        assert sum(planned.parts().values()) == planned.asked.total_bytes <= usable_bytes(64 * GIB)
        assert planned.asked.times is not None
        assert planned.asked.times.first_token_seconds > 1000
        assert isinstance(planned, salalocal.Plan)

    @pytest.mark.parametrize(("flags", "item_bytes"), [("avx512_bf16", 2), ("avx2", 4)])
    def test_without_measurements_there_are_no_times(
        self, monkeypatch: pytest.MonkeyPatch, flags: str, item_bytes: int
    ) -> None:
        monkeypatch.setattr(machine, "processor_facts", lambda: f"flags : {flags}\n")
        place = plans._place(None)
        assert (place.on_gpu, place.item_bytes, place.rates) == (False, item_bytes, None)

    def test_a_gpu_that_is_not_here(self) -> None:
        planned = salalocal.plan(RELEASED, M, gpu_memory=24 * GIB)
        assert (planned.fits, planned.asked.times) == (True, None)
        assert planned.host_bytes > 8 * GIB, "K and V of a million tokens"
        rounded = salalocal.plan(RELEASED, M, gpu_memory=24 * GIB, kv="fp8")
        assert 0.5 < rounded.host_bytes / planned.host_bytes < 0.52
        planned = salalocal.plan(RELEASED, M, gpu_memory=8 * GIB)
        assert (planned.fits, planned.obstacle, planned.asked.times) == (False, "memory", None)
        assert [(near.packing, near.tokens) for near in planned.nearest] == [("int4", M)]
        assert planned.nearest[0].total_bytes <= usable_gpu_bytes(8 * GIB)

    def test_a_folder_with_nothing_but_a_config(self, tmp_path: Path) -> None:
        folder = tmp_path / "sala"
        folder.mkdir()
        (folder / "config.json").write_bytes(find_config(RELEASED).read_bytes())
        assert salalocal.plan(folder, M, 24 * GIB) == salalocal.plan(RELEASED, M, 24 * GIB)

    def test_refusals(self) -> None:
        with pytest.raises(InvalidRequest, match="context_tokens is 0; 1 to 1,073,741,824 can be planned for"):
            salalocal.plan(RELEASED, 0)
        with pytest.raises(InvalidRequest, match="gpu_memory is 0; give the bytes of a GPU"):
            salalocal.plan(RELEASED, 1, 0)
        with pytest.raises(InvalidRequest, match="kv is 'fp16'; known are full, int8, fp8"):
            salalocal.plan(RELEASED, 1, kv="fp16")
        with pytest.raises(ModelNotFound):
            salalocal.plan("nonsense", 1)


class TestOnAGpu:
    def test_what_is_free_of_it_counts(self, gpu: list[tuple[str, ...]]) -> None:
        machine.save(measured("cuda", "NVIDIA Card, with a comma"))
        place = plans._place(None)
        assert (place.on_gpu, place.item_bytes, place.usable_bytes) == (True, 2, usable_gpu_bytes(20 * GIB))
        assert place.rates == RATES
        assert plans._place(8 * GIB).usable_bytes == usable_gpu_bytes(8 * GIB)
        assert gpu[0][-1] == "--id=0"

    @pytest.mark.parametrize(("visible", "asked"), [("3,1", "--id=3"), ("GPU-1-2", "--id=GPU-1-2")])
    def test_the_first_that_is_visible(
        self, gpu: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, visible: str, asked: str
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert plans._place(None).on_gpu
        assert gpu[0][-1] == asked

    @pytest.mark.parametrize("visible", ["", "-1"])
    def test_none_is_visible(self, gpu: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert not plans._place(None).on_gpu
        assert gpu == []

    def test_a_torch_that_cannot_use_it(self, gpu: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "version", lambda _: "2.11.0+cpu")
        assert not plans._place(None).on_gpu
        assert gpu == []


def test_the_dtype_is_that_of_load() -> None:
    assert str(resolve_dtype("auto", torch.device("cpu"))) == f"torch.{plans._processor_dtype()}"


def test_a_plan_loads_no_torch() -> None:
    code = f"import sys, salalocal; salalocal.plan({RELEASED!r}, 1 << 20); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
