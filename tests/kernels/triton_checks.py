"""Triton kernels without a GPU: run in Triton's interpreter, and compiled for every card with the launcher's own
arguments. Knows no op.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from compiled import SHARED_BYTES, Compiled, compile_kernel
from torch import Tensor

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
MULTIPROCESSORS = {(8, 0): 108, (8, 6): 82, (8, 9): 128, (9, 0): 132, (12, 0): 170}

# bfloat16 at the released sizes is compiled for every card; the rest for one that ships with much shared memory and one
# with little.
COMPILED = tuple((capability, torch.bfloat16, "released") for capability in CAPABILITIES) + tuple(
    (capability, dtype, size)
    for capability in ((8, 6), (9, 0))
    for dtype, size in ((torch.float32, "released"), (torch.bfloat16, "embedded"))
)
compiled = pytest.mark.parametrize(("capability", "dtype", "size"), COMPILED, ids=str)

_TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def relative_error(found: Tensor, expected: Tensor) -> float:
    """RMS(found - expected) / RMS(expected), in float64; NaN where found has one."""
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    expected = expected.double()
    return float((found.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def assert_no_worse(name: str, found: Tensor, expected: Tensor, same_dtype: Tensor) -> None:
    """FlashAttention's rule: at most twice the error of PyTorch in the same dtype, both against float64."""
    assert found.dtype == same_dtype.dtype
    error, allowed = relative_error(found, expected), relative_error(same_dtype, expected)
    # A result that PyTorch happens to get exactly leaves room for one rounding.
    allowed = max(2 * allowed, torch.finfo(found.dtype).eps)
    assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


def interpreted(file: str) -> Any:
    """Parametrizes a test by the `check_*` functions of its own file; `failure_of` runs them."""
    names = re.findall(r"^def (check_\w+)", Path(file).read_text("utf-8"), re.MULTILINE)
    return pytest.mark.parametrize("check", names)


@functools.cache
def _failures(file: str) -> dict[str, str]:
    # Triton decides when it is imported whether it interprets, so the checks get a process of their own.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, __file__, file], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return found


def failure_of(file: str, check: str) -> str:
    """Traceback of one `check_*` function in the interpreter; empty where it passed."""
    return _failures(file)[check]


def _main(file: str) -> None:
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        # Triton 3.6 makes a loop bound with int() of an array of one element, which numpy no longer converts.
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    sys.path.insert(0, str(Path(__file__).parent))
    results = {}
    for name, check in runpy.run_path(file).items():
        if name.startswith("check_"):
            try:
                check()
            except Exception:  # noqa: BLE001
                results[name] = traceback.format_exc()
            else:
                results[name] = ""
    print(json.dumps(results))  # noqa: T201


@dataclass(frozen=True)
class Launch:
    """Arguments of one launch by position, and constants and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class _Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **named: self.launches.append(Launch(self.kernel, grid, arguments, named))


def launches(module: ModuleType, capability: tuple[int, int], launch: Callable[[], object]) -> list[Launch]:
    """What `launch()`, given tensors on the meta device, would start on a card of that capability."""
    import triton

    from salalocal_kernels.gpu import target

    found: list[Launch] = []
    about = (10 * capability[0] + capability[1], MULTIPROCESSORS[capability])
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(target, "_ELSEWHERE", about))
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel"):
                stack.enter_context(mock.patch.object(module, name, _Recorder(value, found)))
        launch()
    return found


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compiles as the launch would be."""
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    aligned: set[str] = set()
    names = launch.kernel.arg_names
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        generic = launch.kernel.params[index].do_not_specialize
        if isinstance(value, torch.Tensor):
            types[name] = _TYPES[value.dtype]
            aligned.add(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        elif value is None or (value == 1 and not generic):
            constants[name] = value
        else:
            types[name] = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
            if value % 16 == 0 and not generic:
                aligned.add(name)
    constants |= {name: value for name, value in launch.named.items() if name in names}
    options = {name: value for name, value in launch.named.items() if name not in names}
    return compile_kernel(launch.kernel, 10 * capability[0] + capability[1], types, constants, aligned, options)


def assert_fits(module: ModuleType, capability: tuple[int, int], launch: Callable[[], object]) -> list[Compiled]:
    """Every launch compiles, within the card's shared memory and without spilled registers."""
    found = launches(module, capability, launch)
    assert found, "nothing was launched"
    reports = [compile_launch(each, capability) for each in found]
    for report in reports:
        assert report.shared_bytes <= SHARED_BYTES[10 * capability[0] + capability[1]], report
        assert report.spilled_bytes == 0, report
    return reports


if __name__ == "__main__":
    _main(sys.argv[1])
