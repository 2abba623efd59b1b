"""How tests of Triton kernels run without a GPU: in the interpreter, in a process of its own, and through the compiler.

The compiler makes machine code for any chip here, so shared memory and spilled registers are known; whether it is fast
is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from compiled import SHARED_BYTES, compile_kernel

CHIPS = (80, 86, 89, 90, 120)
# Every chip at the released model's shapes; at the embedded model's one of each table entry.
MODELS = {"released": (16, 128), "embedded": (8, 64)}
"""Name -> query heads per kv head, channels of a head."""
CASES = [*(("released", chip) for chip in CHIPS), ("embedded", 86), ("embedded", 90)]


def run_interpreted(file: str) -> None:
    """Runs `file` as a script under Triton's interpreter; fails with its output."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr[-4000:]}"


def run_checks(*checks: Callable[[], None]) -> None:
    """The body of such a script: fresh memory holds NaN, then one check after another."""
    assert os.environ.get("TRITON_INTERPRET") == "1"
    torch.set_num_threads(1)
    for name in ("empty", "empty_like"):
        setattr(torch, name, _poisoned(getattr(torch, name)))
    for check in checks:
        sys.stdout.write(f"{check.__name__}\n")
        sys.stdout.flush()
        check()


def _poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
        fresh = make(*args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh.fill_(-77)

    return filled


def compile_for(
    chip: int, kernel: Any, constants: Mapping[str, Any], types: Mapping[str, str], warps: int, stages: int
) -> int:
    """Compiles a kernel for a chip; fails where it wants too much shared memory.

    Args:
        chip: compute capability, one of CHIPS.
        kernel: the @triton.jit function.
        constants: its constexpr arguments.
        types: types of its other arguments where they are not i32; pointers and strides count as divisible by 16.
        warps, stages: as launched.

    Returns:
        Bytes of registers spilled.
    """
    names = [name for name in kernel.arg_names if name not in constants]
    aligned = {name for name in names if name.endswith("_ptr") or name.startswith("stride")}
    options = {"num_warps": warps, "num_stages": stages}
    found = compile_kernel(kernel, chip, {name: types.get(name, "i32") for name in names}, constants, aligned, options)
    shared = found.shared_bytes
    assert shared <= SHARED_BYTES[chip], f"{kernel.__name__} on {chip}: {shared} bytes"
    return found.spilled_bytes
