"""Packed weights, norms, embedding rows and 8-bit products at the released model's sizes. Knows no clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from salalocal_kernels.gpu.bench import peers
from salalocal_kernels.gpu.bench.cases import Case, Unit
from salalocal_kernels.gpu.gather_rows import gather_rows
from salalocal_kernels.gpu.packed_linear import packed_linear, packed_silu_mul
from salalocal_kernels.gpu.quantize_tokens import quantize_tokens
from salalocal_kernels.gpu.rms_norm import add_rms_norm
from salalocal_kernels.gpu.scaled_linear import scaled_linear
from salalocal_kernels.gpu.silu_mul import silu_mul
from salalocal_kernels.gpu.unpack_planes import plane_codes, plane_steps, plane_values
from salalocal_kernels.ref.planes import Planes

T = TypeVar("T")
HIDDEN, WIDE, VOCABULARY = 4096, 16384, 73448
CHUNK = 16384
# A round goes through copies of the weights that exceed any cache together, as a decode step finds them.
_COLD_BYTES = 512 << 20
_PRODUCTS = (
    ("int4 32768 x 4096", HIDDEN, [(2 * WIDE, 4)]),
    ("int4 4096 x 16384", WIDE, [(HIDDEN, 4)]),
    ("int4 4096 x 4096", HIDDEN, [(HIDDEN, 4)]),
    ("int8 32768 x 4096", HIDDEN, [(2 * WIDE, 8)]),
    ("int8 4096 x 4096", HIDDEN, [(HIDDEN, 8)]),
    ("lightning q, k, v int4, z int8", HIDDEN, [(HIDDEN, 4)] * 3 + [(HIDDEN, 8)]),
    ("sparse q, k, v, gate int8", HIDDEN, [(HIDDEN, 8), (256, 8), (256, 8), (HIDDEN, 8)]),
    ("head int8", HIDDEN, [(VOCABULARY, 8)]),
)
_UNITS: dict[torch.dtype, Unit] = {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


def cases() -> list[Case]:
    """One token, then a chunk; bytes count weights, scales and activations once."""
    return [*rows(), _norm(1), _rows(1), *_prefill()]


def between(tokens: int) -> tuple[Case, Case]:
    """What stands between the large products of a chunk: an addition with its norm, SiLU with its product."""
    gate, up = _random(tokens, WIDE), _random(tokens, WIDE)
    return _norm(tokens), Case("silu_mul", f"{tokens:,} x 16384", partial(silu_mul, gate, up), 6 * gate.numel())


def rows() -> Iterator[Case]:
    """Packed products with one token, one after the other: each takes half a GiB."""
    for name, columns, parts in _PRODUCTS:
        x = _random(1, columns)
        size = sum(_matrix(rows, columns, bits, "meta").nbytes for rows, bits in parts)
        copies = [[_matrix(rows, columns, bits) for rows, bits in parts] for _ in range(1 + _COLD_BYTES // size)]
        call = _in_turn(copies, partial(packed_linear, x))
        flop = 2 * columns * sum(rows for rows, _ in parts)
        peer = peers.four_bit_linear(x, parts[0][0], len(copies)) if name.startswith("int4") else None
        yield Case("packed_linear", name, call, size, flop, turns=len(copies), peer=peer)
    x = _random(1, HIDDEN)
    pairs = [(_matrix(WIDE, HIDDEN, 4), _matrix(WIDE, HIDDEN, 4)) for _ in range(8)]
    size = 2 * pairs[0][0].nbytes
    both = _in_turn(pairs, lambda pair: packed_silu_mul(x, *pair))
    yield Case("packed_silu_mul", "int4 gate and up, 4096 to 16384", both, size, 4 * WIDE * HIDDEN, turns=8)


def _prefill() -> list[Case]:
    matrix, numbers = _matrix(HIDDEN, WIDE, 4), HIDDEN * WIDE
    out = torch.empty(HIDDEN, WIDE, device="cuda", dtype=torch.bfloat16)
    x = _random(CHUNK, WIDE)
    unpack = partial(plane_values, matrix, torch.bfloat16, out)
    row_scales = torch.ones(HIDDEN, device="cuda")
    found = [
        Case("plane_values", "int4 4096 x 16384 to bf16", unpack, matrix.nbytes + out.nbytes),
        _norm(CHUNK),
        _rows(CHUNK),
        between(CHUNK // 4)[1],
    ]
    for dtype, unit in _UNITS.items():
        if dtype.is_floating_point and torch.cuda.get_device_capability() < (8, 9):
            continue
        codes, scales = quantize_tokens(x, dtype)
        steps = plane_steps(matrix, dtype)
        moved, flop = codes.nbytes + steps.nbytes + 2 * CHUNK * HIDDEN, 2 * CHUNK * numbers
        product = f"{CHUNK:,} tokens, 4096 x 16384, {unit}, a scale for each"
        by_row = partial(scaled_linear, codes, scales, steps, torch.ones(HIDDEN, device="cuda"), torch.bfloat16)
        by_group = partial(scaled_linear, codes, scales, steps, matrix.scales, torch.bfloat16)
        again = partial(plane_steps, matrix, dtype, steps)
        narrow = partial(plane_codes, matrix, row_scales, dtype, steps)
        found += [
            Case("quantize_tokens", f"{CHUNK:,} x 16384 to {unit}", partial(quantize_tokens, x, dtype), 3 * x.numel()),
            Case("plane_steps", f"int4 4096 x 16384 to {unit}", again, matrix.nbytes + numbers),
            Case("plane_codes", f"int4 4096 x 16384 to {unit}", narrow, matrix.nbytes + numbers),
            Case("scaled_linear", f"{product} row", by_row, moved, flop, unit),
            Case("scaled_linear", f"{product} group", by_group, moved, flop, unit),
        ]
    return found


def _norm(tokens: int) -> Case:
    x = torch.randn(tokens, HIDDEN, device="cuda")
    branch, weight = x.bfloat16(), torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    call = partial(add_rms_norm, x, branch, 0.25, weight, 1e-6)
    return Case("add_rms_norm", _tokens(tokens), call, 12 * x.numel(), turns=48 if tokens == 1 else 1)


def _rows(tokens: int) -> Case:
    """Embedding rows out of pinned host memory; the bytes come over the bus."""
    codes = torch.randint(-127, 128, (VOCABULARY, HIDDEN), dtype=torch.int8).pin_memory()
    scales = torch.ones(VOCABULARY, HIDDEN // 128, dtype=torch.bfloat16).pin_memory()
    ids = torch.randint(0, VOCABULARY, (tokens,), device="cuda")
    call = partial(gather_rows, codes, scales, ids, 12.0, torch.bfloat16)
    size = tokens * (HIDDEN + 2 * HIDDEN // 128)
    return Case("gather_rows", f"{_tokens(tokens)} from host memory", call, size, turns=48 if tokens == 1 else 1)


def _in_turn(copies: list[T], call: Callable[[T], object]) -> Callable[[], object]:
    following = itertools.cycle(copies)
    return lambda: call(next(following))


def _matrix(rows: int, columns: int, bits: int, device: str = "cuda") -> Planes:
    words = torch.empty(rows, columns * bits // 32, dtype=torch.int32, device=device)
    scales = torch.ones(rows, columns // 128, dtype=torch.bfloat16, device=device)
    if device != "meta":
        words.random_()
    return Planes(words, scales, None, bits, 128)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _tokens(tokens: int) -> str:
    return f"{tokens:,} tokens" if tokens > 1 else "1 token"
