"""The sparse attention kernel compiles for every generation of GPU that is served, on a machine without one.

Whatever the launcher hands to the kernel is caught and given to the compiler in its place, with what Triton would see
in it: the types, and which numbers are multiples of 16.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed; the development extra has it on Linux x86-64",
)

# Compute capability: A100; RTX 30; RTX 40; H100; RTX 50.
CAPABILITIES = (80, 86, 89, 90, 120)
# What a block may use on all of them; an A100 and an H100 have more.
SHARED_BYTES = 99 * 1024
# Heads per kv head, head dimension.
SHAPES = {"released": (16, 128), "embedded": (8, 64)}
KV_HEADS, BLOCK, PICKS = 2, 64, 96
TOKENS, PAGES = 40, 16384  # a million tokens in the cache
TYPES = {torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}


@dataclass
class Launch:
    """Stands in for the kernel and keeps what it is launched with."""

    grid: tuple[int, ...] = ()
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grid = grid
        return self.record

    def record(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


@pytest.fixture(autouse=True)
def _compile_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def catch_launch(group: int, dim: int) -> Launch:
    """The launch at a million tokens in bfloat16. Its tensors have shapes and strides, but no memory."""
    from salalocal_kernels.gpu import sparse_attention as module

    launch = Launch()
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(module, "_sparse_attention_kernel", launch)
        q = torch.zeros(TOKENS, KV_HEADS * group, dim, dtype=torch.bfloat16)
        pages = torch.zeros(KV_HEADS, 2, PAGES, BLOCK, dim, dtype=torch.bfloat16).permute(2, 0, 1, 3, 4)
        table = torch.zeros(PAGES, dtype=torch.int64)
        blocks = torch.zeros(KV_HEADS, TOKENS, PICKS, dtype=torch.int32)
        module.sparse_attention_prefill(q, pages, table, blocks, PAGES * BLOCK - TOKENS - 3, dim**-0.5)
    assert launch.grid == (TOKENS, KV_HEADS)
    return launch


def compile_launch(launch: Launch, capability: int) -> Any:
    """What Triton makes of a launch for one generation."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from salalocal_kernels.gpu.sparse_attention import _sparse_attention_kernel as kernel

    assert launch.options is not None
    names = kernel.arg_names
    options = {name: value for name, value in launch.options.items() if name not in names}
    constants = {(names.index(name),): value for name, value in launch.options.items() if name in names}
    signature, hints = {}, {}
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            assert isinstance(value, int)
            assert value != 1, f"{name} would be compiled as a constant"
            signature[name] = "i32" if value < 2**31 else "i64"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(index,)] = [["tt.divisibility", 16]]
    signature |= {name: "constexpr" for name in names if name not in signature}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_compiles_and_its_shared_memory_is_there(shape: str, capability: int) -> None:
    compiled = compile_launch(catch_launch(*SHAPES[shape]), capability)
    assert len(compiled.asm["cubin"]) > 1000
    assert 0 < compiled.metadata.shared <= SHARED_BYTES
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert "mma.sync" in compiled.asm["ptx"], "the products are not made by tensor cores"


def test_places_of_keys_are_computed_wide_enough() -> None:
    """A kv head's place in the store passes 2^31 elements from a million tokens and eight heads on."""
    ttir = compile_launch(catch_launch(*SHAPES["released"]), 90).asm["ttir"]
    products = re.findall(r"arith\.muli (.*) : (i32|i64)\b", ttir)
    strides = [(of, width) for of, width in products if re.search(r"%(\w*stride_p[ph]\w*|page|kv_head)", of)]
    assert strides
    assert {width for _, width in strides} == {"i64"}, strides
