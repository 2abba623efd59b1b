"""`salalocal doctor`: is this machine ready, and where not, what to do. Looks; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil
import typer
from rich.text import Text

import salalocal
from salalocal import hub
from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import human_bytes, one_line, print_json, stdout

Status = Literal["ok", "warn", "fail"]
_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}

# A 9B model in int4 weighs about 6 GB and a long session a few more; below 1 GB not even a small one fits.
ROOM_WANTED_BYTES = 20_000_000_000
ROOM_NEEDED_BYTES = 1_000_000_000
# The demo model with a full context and torch itself stay under 1.5 GB.
MEMORY_WANTED_BYTES = 2_000_000_000
GPU_MEMORY_WANTED_BYTES = 7_500_000_000
TORCH_MINIMUM = (2, 7)


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, how it stands, and what was found or what to do."""

    name: str
    status: Status
    detail: str


def check_python() -> Check:
    """The interpreter and the system under it."""
    system = f"{platform.python_implementation()}, {platform.system()} {platform.machine()}"
    return Check("python", "ok", f"{platform.python_version()} ({system})")


def check_torch() -> Check:
    """Version and build of torch."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of the wheel is missing or foreign
        return Check("torch", "fail", f"cannot be imported ({error}); install torch again")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    detail = f"{torch.__version__} ({build})"
    found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if found < TORCH_MINIMUM:
        return Check("torch", "fail", f"{detail}; {'.'.join(map(str, TORCH_MINIMUM))} or newer is needed")
    return Check("torch", "ok", detail)


def check_cpu() -> Check:
    """Cores, and whether bfloat16 multiplies in hardware."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 0
    detail = f"{cores} cores, {psutil.cpu_count() or cores} threads"
    flags = _cpu_flags()
    if flags is None:
        return Check("cpu", "ok", f"{detail}; bfloat16 support unknown on this system")
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16") if name in flags]
    if units:
        return Check("cpu", "ok", f"{detail}; bfloat16 in hardware ({', '.join(units)})")
    return Check("cpu", "ok", f"{detail}; bfloat16 emulated, float32 may be faster")


def check_memory() -> Check:
    """Main memory, all and free."""
    memory = psutil.virtual_memory()
    detail = f"{human_bytes(memory.available)} free of {human_bytes(memory.total)}"
    if memory.available < MEMORY_WANTED_BYTES:
        return Check("memory", "warn", f"{detail}; the demo model wants {human_bytes(MEMORY_WANTED_BYTES)}")
    return Check("memory", "ok", detail)


def check_gpu() -> Check:
    """The NVIDIA GPU, its driver, and whether torch can use it."""
    try:
        cards = _nvidia_smi()
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "warn", f"nvidia-smi is here but failed ({one_line(str(error))}); is the driver loaded?")
    try:
        import torch

        usable = torch.cuda.is_available()
    except (ImportError, OSError):
        usable = False
    if not cards and not usable:
        return Check("gpu", "warn", "no NVIDIA GPU: models run on the CPU, slowly")
    detail = "; ".join(cards) or torch.cuda.get_device_name()
    if not usable:
        return Check("gpu", "warn", f"{detail}; this build of torch cannot use it (install one with CUDA)")
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        return Check("gpu", "warn", f"{detail}; bfloat16 needs compute capability 8.0, this is {capability}")
    if total_bytes < GPU_MEMORY_WANTED_BYTES:
        return Check("gpu", "warn", f"{detail}; salalocal is made for 8 GiB and more")
    return Check("gpu", "ok", f"{detail}, compute capability {capability[0]}.{capability[1]}")


def check_disk() -> Check:
    """Room and write permission where models live."""
    home = hub.models_folder()
    existing = home
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    detail = f"{human_bytes(free)} free at {home}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "fail", f"{home} cannot be written; SALALOCAL_HOME names another place")
    if free < ROOM_NEEDED_BYTES:
        return Check("disk", "fail", f"{detail}; SALALOCAL_HOME names another place")
    if free < ROOM_WANTED_BYTES:
        return Check("disk", "warn", f"{detail}; a large model wants {human_bytes(ROOM_WANTED_BYTES)}")
    return Check("disk", "ok", detail)


def check_models() -> Check:
    """The models on this machine."""
    found = hub.list_models()
    if not found:
        return Check("models", "warn", "none, not even the embedded one: install salalocal again")
    return Check("models", "ok", ", ".join(f"{model.name} ({human_bytes(model.bytes)})" for model in found))


def check_packages() -> Check:
    """The Python packages that salalocal declares, and their versions."""
    try:
        declared = importlib.metadata.requires("salalocal") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "fail", "salalocal is not installed; pip install it")
    versions, missing = [], []
    for requirement in declared:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement)
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}; pip install them")
    return Check("packages", "ok", ", ".join(versions))


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_torch,
    check_cpu,
    check_memory,
    check_gpu,
    check_disk,
    check_models,
    check_packages,
)


def doctor(json: JsonOption = False) -> None:
    """Look whether this machine is ready: Python, torch, CPU, memory, GPU, disk, models, packages.

    Exits with 1 where a check fails; a warning does not count as failure.
    """
    results = [check() for check in CHECKS]
    if json:
        print_json({"version": salalocal.__version__, "checks": [asdict(result) for result in results]})
    else:
        console = stdout()
        for result in results:
            console.print(
                Text.assemble(
                    (f"{result.status:<4}", _STYLES[result.status]),
                    f"  {result.name:<8}  {one_line(result.detail)}",
                )
            )
    if any(result.status == "fail" for result in results):
        raise typer.Exit(1)


def _cpu_flags() -> set[str] | None:
    """Feature flags of the first CPU as Linux lists them; None on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return set(match.group(1).split()) if match else None


def _nvidia_smi() -> list[str]:
    """One line per NVIDIA GPU: name, memory, driver. Empty where there is no nvidia-smi.

    Raises OSError or subprocess.SubprocessError where it is there and does not answer.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    answer = subprocess.run(
        [program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=15, check=True
    )
    lines = [line.split(", ") for line in answer.stdout.splitlines() if line.strip()]
    return [f"{', '.join(fields[:-1])}, driver {fields[-1]}" for fields in lines]


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("doctor", short_help="Look whether this machine is ready.")(doctor)
