"""`salalocal doctor`: each check on machines that have and lack what it looks for."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from scripted import Run

from salalocal import hub
from salalocal.cli import doctor
from salalocal.cli.doctor import Check

Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "total available")


def test_this_machine(run: Run) -> None:
    outcome = run("doctor", "--json")
    checks = {check["name"]: check for check in outcome.data["checks"]}
    assert list(checks) == ["python", "torch", "cpu", "memory", "gpu", "disk", "models", "packages"]
    assert checks["python"]["status"] == "ok"
    assert "tokenizers " in checks["packages"]["detail"]
    assert outcome.code == (1 if any(check["status"] == "fail" for check in checks.values()) else 0)


def test_one_line_per_check_and_exit_1_on_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("disk", "ok", "much room"), Check("torch", "fail", "not\nthere")]
    monkeypatch.setattr(doctor, "CHECKS", tuple((lambda check=check: check) for check in found))
    outcome = run("doctor")
    assert outcome.code == 1
    assert outcome.out.splitlines() == ["ok    disk      much room", "fail  torch     not there"]


def test_a_warning_is_no_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("gpu", "warn", "none"),))
    assert run("doctor").code == 0


@pytest.mark.parametrize(("free", "status"), [(500_000_000, "fail"), (5_000_000_000, "warn"), (10**12, "ok")])
def test_disk(free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "models_folder", lambda: tmp_path / "not" / "made" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * free, free, free) if path == tmp_path else None)
    assert doctor.check_disk().status == status


@pytest.mark.parametrize(("free", "status"), [(10**9, "warn"), (8 * 10**9, "ok")])
def test_memory(free: int, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(16 * 10**9, free))
    assert doctor.check_memory().status == status


@pytest.mark.parametrize(
    ("flags", "said"),
    [({"avx2", "avx512_bf16"}, "avx512_bf16"), ({"avx2"}, "emulated"), (None, "unknown")],
)
def test_cpu(flags: set[str] | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_cpu_flags", lambda: flags)
    assert said in doctor.check_cpu().detail


def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "_nvidia_smi", lambda: ["NVIDIA RTX 4060, 8188 MiB, driver 580.1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = doctor.check_gpu()
    assert check.status == "warn"
    assert "RTX 4060" in check.detail
    assert "this build of torch cannot use it" in check.detail


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.check_gpu() == Check("gpu", "warn", "no NVIDIA GPU: models run on the CPU, slowly")


def test_nvidia_smi_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(9, "nvidia-smi")

    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", fail)
    assert "is the driver loaded?" in doctor.check_gpu().detail


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["rich>=13", "surely-not-installed>=2,<3", 'pytest; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: wanted)
    check = doctor.check_packages()
    assert check.status == "fail"
    assert check.detail == "missing: surely-not-installed>=2,<3; pip install them"
