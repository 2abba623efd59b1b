"""What Triton makes of a kernel for a card that is not here; kept between runs in `.pytest_cache`. Knows no op.

Whether it is fast only the card can tell; what it takes of one is known here, for the configuration that is launched.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Compute capability -> the most shared memory of one program."""
_KEPT = Path(__file__).parents[2] / ".pytest_cache" / "kernels"
_ALIGNED = 16


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a card, and its PTX."""

    shared_bytes: int
    registers: int
    spilled_bytes: int
    ptx: str


def compile_kernel(
    kernel: Any,
    capability: int,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    aligned: set[str],
    options: Mapping[str, object],
) -> Compiled:
    """Compiles, or finds what was compiled of the same source by the same Triton.

    Args:
        kernel: the @triton.jit function.
        capability: of the card, 90 for an H100.
        types: argument -> Triton's name of its type, without the constants.
        constants: argument -> its value; constexpr ones, and what a launch would specialize.
        aligned: arguments that are divisible by 16.
        options: Triton's own (num_warps, num_stages, ...).
    """
    import triton

    what = [triton.__version__, kernel.cache_key, capability, sorted(types.items()), sorted(aligned)]
    what += [sorted((name, repr(value)) for name, value in constants.items()), sorted(options.items())]
    file = _KEPT / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.json"
    if file.is_file():
        return Compiled(**json.loads(file.read_text()))
    found = _compile(kernel, capability, types, constants, aligned, options)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(asdict(found)))
    new.replace(file)
    return found


def _compile(
    kernel: Any,
    capability: int,
    types: Mapping[str, str],
    constants: Mapping[str, object],
    aligned: set[str],
    options: Mapping[str, object],
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    divisible = {(names.index(name),): [["tt.divisibility", _ALIGNED]] for name in aligned}
    source = ASTSource(kernel, signature, places, divisible)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    registers, spilled = _usage(result.asm["cubin"])
    return Compiled(result.metadata.shared, registers, spilled, result.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack: what did not fit into them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])
