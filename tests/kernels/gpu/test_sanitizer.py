"""Every kernel at small sizes under NVIDIA's compute-sanitizer: no access out of bounds.

memcheck only: its racecheck looks at shared memory, which Triton hands out and guards in every kernel here. The two
parts take a process each and can run side by side, `-k attention` and `-k weights`; with `-s` each says how long its
ops took.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch

pytest.importorskip("triton")

import every_kernel
from triton_gate import launches

from salalocal_kernels import gpu

TOOL = shutil.which("compute-sanitizer")
needs_the_tool = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.skipif(TOOL is None, reason="compute-sanitizer, a part of NVIDIA's CUDA toolkit, is not on the PATH"),
]


def checked(part: str) -> subprocess.CompletedProcess[str]:
    """Runs a part of `every_kernel.py` with every access to device memory checked."""
    # Of PyTorch's pool every tensor is a part; by itself, and with room behind it, each has bounds that can be checked.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [str(TOOL), "--tool", "memcheck", "--padding", "65536", "--error-exitcode", "9"]
    command += [sys.executable, every_kernel.__file__, part]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    sys.stdout.write(ran.stdout)
    if "Device not supported" in ran.stdout + ran.stderr:
        pytest.skip("compute-sanitizer is there and says of this machine: Device not supported")
    return ran


@pytest.mark.parametrize("part", [pytest.param(part, marks=needs_the_tool) for part in every_kernel.PARTS])
def test_no_access_is_out_of_bounds(part: str) -> None:
    ran = checked(part)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert "ERROR SUMMARY: 0 errors" in ran.stdout


@pytest.mark.parametrize("part", [pytest.param("wrong", marks=needs_the_tool)])
def test_one_that_is_would_be_found(part: str) -> None:
    ran = checked(part)
    assert ran.returncode == 9, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert "Invalid __global__ write" in ran.stdout
    assert "_append_token_kernel" in ran.stdout


def test_no_kernel_is_left_out() -> None:
    modules = [import_module(f"{gpu.__name__}.{module.name}") for module in iter_modules(gpu.__path__)]
    there = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    launched = {
        launch.kernel.fn.__name__
        for part in every_kernel.PARTS
        for call in every_kernel.calls(part, "meta").values()
        for launch in launches(call)
    }
    assert launched == there
    assert len(there) > 25
