"""Packed weights, norms, embedding rows and 8-bit products at the released model's sizes. Knows no clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from salalocal_kernels.gpu.gather_rows import gather_rows
from salalocal_kernels.gpu.packed_linear import packed_linear, packed_silu_mul
from salalocal_kernels.gpu.quantize_tokens import quantize_tokens
from salalocal_kernels.gpu.rms_norm import add_rms_norm
from salalocal_kernels.gpu.scaled_linear import scaled_linear
from salalocal_kernels.gpu.unpack_planes import plane_steps, plane_values
from salalocal_kernels.ref.planes import Planes

T = TypeVar("T")
# Name, call, bytes read and written, operations.
Case = tuple[str, Callable[[], object], int, int]
# Calls of a case go round copies of its weights that together exceed any cache, as a decode step finds them.
_COLD_BYTES = 512 << 20
_CHUNK = 16384


def cases() -> list[Case]:
    """Every case on the current card; bytes count weights, scales and activations once."""
    return [*_decode(), *_prefill()]


def _decode() -> list[Case]:
    found: list[Case] = []
    for name, columns, parts in (
        ("int4 32768x4096", 4096, [(32768, 4)]),
        ("int4 4096x16384", 16384, [(4096, 4)]),
        ("int4 4096x4096", 4096, [(4096, 4)]),
        ("int8 32768x4096", 4096, [(32768, 8)]),
        ("int8 4096x16384", 16384, [(4096, 8)]),
        ("int8 4096x4096", 4096, [(4096, 8)]),
        ("int8 256x4096", 4096, [(256, 8)]),
        ("lightning q k v int4, z int8", 4096, [(4096, 4)] * 3 + [(4096, 8)]),
        ("sparse q k v gate int8", 4096, [(4096, 8), (256, 8), (256, 8), (4096, 8)]),
        ("head int8 73448x4096", 4096, [(73448, 8)]),
    ):
        x = torch.randn(1, columns, device="cuda", dtype=torch.bfloat16)
        size = sum(_matrix(rows, columns, bits, "meta").nbytes for rows, bits in parts)
        copies = [[_matrix(rows, columns, bits) for rows, bits in parts] for _ in range(1 + _COLD_BYTES // size)]
        numbers = columns * sum(rows for rows, _ in parts)
        found.append((f"packed_linear {name}", _turns(copies, partial(packed_linear, x)), size, 2 * numbers))
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    pairs = [(_matrix(16384, 4096, 4), _matrix(16384, 4096, 4)) for _ in range(8)]
    size = 2 * pairs[0][0].nbytes
    found.append(
        ("packed_silu_mul int4", _turns(pairs, lambda pair: packed_silu_mul(x, *pair)), size, 4 * 16384 * 4096)
    )
    return [*found, *_norms(1), *_rows(1)]


def _prefill() -> list[Case]:
    matrix = _matrix(4096, 16384, 4)
    numbers = 4096 * 16384
    out = torch.empty(4096, 16384, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(_CHUNK, 16384, device="cuda", dtype=torch.bfloat16)
    work = 2 * _CHUNK * numbers
    found: list[Case] = [
        ("plane_values bf16", lambda: plane_values(matrix, torch.bfloat16, out), matrix.nbytes + out.nbytes, 0),
        *_norms(_CHUNK),
        *_rows(_CHUNK),
    ]
    dtypes = [torch.int8]
    if torch.cuda.get_device_capability() >= (8, 9):
        dtypes.append(torch.float8_e4m3fn)
    for dtype in dtypes:
        codes, scales = quantize_tokens(x, dtype)
        steps = plane_steps(matrix, dtype)
        channels = torch.ones(4096, device="cuda")
        size = codes.nbytes + steps.nbytes + 2 * _CHUNK * 4096
        found += [
            (f"quantize_tokens {dtype}", partial(quantize_tokens, x, dtype), 3 * x.numel(), 0),
            (f"plane_steps {dtype}", partial(plane_steps, matrix, dtype, steps), matrix.nbytes + numbers, 0),
            (
                f"scaled_linear {dtype} channels",
                partial(scaled_linear, codes, scales, steps, channels, torch.bfloat16),
                size,
                work,
            ),
            (
                f"scaled_linear {dtype} groups",
                partial(scaled_linear, codes, scales, steps, matrix.scales, torch.bfloat16),
                size,
                work,
            ),
        ]
    return found


def _norms(tokens: int) -> list[Case]:
    x = torch.randn(tokens, 4096, device="cuda")
    branch, weight = x.bfloat16(), torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    return [(f"add_rms_norm {tokens}", lambda: add_rms_norm(x, branch, 0.25, weight, 1e-6), 12 * x.numel(), 0)]


def _rows(tokens: int) -> list[Case]:
    codes = torch.randint(-127, 128, (73448, 4096), dtype=torch.int8).pin_memory()
    scales = torch.ones(73448, 32, dtype=torch.bfloat16).pin_memory()
    ids = torch.randint(0, 73448, (tokens,), device="cuda")
    size = tokens * (4096 + 64)
    return [(f"gather_rows pinned {tokens}", lambda: gather_rows(codes, scales, ids, 12.0, torch.bfloat16), size, 0)]


def _turns(copies: list[T], call: Callable[[T], object]) -> Callable[[], object]:
    following = itertools.cycle(copies)
    return lambda: call(next(following))


def _matrix(rows: int, columns: int, bits: int, device: str = "cuda") -> Planes:
    words = torch.empty(rows, columns * bits // 32, dtype=torch.int32, device=device)
    scales = torch.ones(rows, columns // 128, dtype=torch.bfloat16, device=device)
    if device != "meta":
        words.random_()
    return Planes(words, scales, None, bits, 128)
