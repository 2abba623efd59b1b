"""How tests of Triton kernels run without a GPU: in the interpreter, in a process of its own, and through the compiler.

The compiler makes machine code for any chip here, so shared memory and spilled registers are known; whether it is fast
is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

CHIPS = (80, 86, 89, 90, 120)
# Every chip at the released model's shapes; at the embedded model's one of each table entry.
MODELS = {"released": (16, 128), "embedded": (8, 64)}
"""Name -> query heads per kv head, channels of a head."""
CASES = [*(("released", chip) for chip in CHIPS), ("embedded", 86), ("embedded", 90)]
# Most bytes of shared memory of one program.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}


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
        Bytes of registers spilled, from ptxas.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        if name not in constants and (name.endswith("_ptr") or name.startswith("stride")):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    name = kernel.__name__
    assert compiled.metadata.shared <= SHARED_BYTES[chip], f"{name} on {chip}: {compiled.metadata.shared} bytes"
    return _spilled_bytes(compiled.asm["ptx"], chip)


def _spilled_bytes(ptx: str, chip: int) -> int:
    from triton import knobs

    assembler = (knobs.nvidia.ptxas_blackwell if chip >= 100 else knobs.nvidia.ptxas).path
    suffix = "a" if chip >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        command = [assembler, "-v", f"--gpu-name=sm_{chip}{suffix}", str(path), "-o", str(Path(folder, "kernel.cubin"))]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r"(\d+) bytes spill stores", log)
    assert found is not None, log
    return int(found[1])
