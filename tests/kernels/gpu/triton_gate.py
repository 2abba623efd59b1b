"""Kernels without a GPU: run in Triton's interpreter, and compiled for cards that are not here. Knows no op."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from compiled import SHARED_BYTES, Compiled, compile_kernel

__all__ = [
    "SHARED_BYTES",
    "Launch",
    "assert_fits",
    "compiled",
    "launches",
    "main",
    "poisoned",
    "run_interpreted",
    "version",
]

_TYPES = {
    torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16",
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip


def run_interpreted(script: str) -> None:
    """Runs a test file as a script with Triton's interpreter on, which has to be chosen before triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills what `torch.empty` hands out with NaN, or the largest integer."""

    def filled(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make_and_fill(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            if tensor.dtype == torch.float8_e4m3fn:
                tensor.view(torch.uint8).fill_(0x7F)
                return tensor
            return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

        return make_and_fill

    with mock.patch("torch.empty", filled(torch.empty)), mock.patch("torch.empty_like", filled(torch.empty_like)):
        yield


def main(checks: dict[str, Any]) -> None:
    """Runs every function of a module whose name begins with `check_`."""
    with poisoned():
        for name, check in list(checks.items()):
            if name.startswith("check_"):
                check()


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: what it was given, by the names of its parameters, and Triton's own options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


def launches(call: Callable[[], Any]) -> list[Launch]:
    """The kernels that `call` would launch; with tensors on the meta device nothing is computed."""
    from triton.runtime.jit import JITFunction

    seen: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del grid, warmup
        arguments = dict(zip(self.arg_names, args, strict=False)) | {
            name: value for name, value in kwargs.items() if name in self.arg_names
        }
        assert set(arguments) == set(self.arg_names)
        seen.append(Launch(self, arguments, {k: v for k, v in kwargs.items() if k not in self.arg_names}))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return seen


def version(launch: Launch) -> tuple[dict[str, str], dict[str, object], set[str]]:
    """What Triton compiles a kernel for, pointers divisible by 16 as PyTorch hands them out.

    Returns:
        types of the arguments, those that are constants, and the names of those that are divisible by 16.
    """
    types: dict[str, str] = {}
    constants: dict[str, object] = {}
    aligned: set[str] = set()
    for parameter in launch.kernel.params:
        name, value = parameter.name, launch.arguments[parameter.name]
        is_generic = parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and not is_generic):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            types[name] = "*" + _TYPES[value.dtype]
            aligned.add(name)
        elif isinstance(value, int):
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not is_generic:
                aligned.add(name)
        else:
            types[name] = "fp32"
    return types, constants, aligned


def compiled(launch: Launch, capability: int) -> Compiled:
    """Compiles as the launch would on a card of this capability."""
    return compile_kernel(launch.kernel, capability, *version(launch), launch.options)


def assert_fits(launch: Launch, capability: int) -> Compiled:
    """Fails on more shared memory than a block may have, and on registers spilled to memory."""
    found = compiled(launch, capability)
    name = f"{launch.kernel.fn.__name__} on sm_{capability}"
    assert found.shared_bytes <= SHARED_BYTES[capability], f"{name}: {found.shared_bytes} bytes of shared memory"
    assert found.spilled_bytes == 0, f"{name}: {found.spilled_bytes} bytes spilled, {found.registers} registers"
    return found
