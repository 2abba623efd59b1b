"""Packed matrices times one token on a GPU: several matrices in a launch. Made for one token; knows no layers.

Bound by the bytes of the weights. What else a weight costs has to fit beside them: an H100 that reads 3 TB/s has 4.9
issue slots for each weight of 4 bits, half of them for integers. Here a weight takes 1.5 integer instructions (`field`)
and 1.2 multiplications; with everything around them ptxas counts 3.9 for sm_90 at K = 4096. A program takes whole rows,
so that no partial sum leaves it: K = 4096 is one 16-byte load per row and thread, and 8 rows keep 16 KiB per program in
flight. Splitting K over programs would only help matrices of fewer than some 200 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped
from salalocal_kernels.gpu.packed_dot import ONE_HIGH, ONE_LOW, dot_rows
from salalocal_kernels.gpu.packed_mma import FEWEST_ROWS, GROUP_OF_QUARTET, ONES_BFLOAT16, Mma, mma_rows
from salalocal_kernels.gpu.target import capability, multiprocessors
from salalocal_kernels.ref.planes import Planes

# Rows of a program, by the programs per multiprocessor that they leave; more rows share the work on x.
_ROWS = (8, 4, 2, 1)
_PROGRAMS_PER_MULTIPROCESSOR = 2
_WARPS = 4
# More stages bring the words of the next step through shared memory (8 rows: 24 KiB at 2) where K takes several steps.
_STAGES = 1
_SLOTS = 4
# How tensor cores multiply 4 bits where they can and where that was timed: on Hopper, 4096 x 4096, where of some twenty
# variants this took the least time (docs/performance.md).
_MMA = Mma(ahead=128, reach=3)
_MMA_CARD = 90
_MMA_MOST_WEIGHTS = 1 << 24
# Registers of a thread. Fewer, by its rows, on an H100 for a program of packed_linear that takes a row at once and has
# no zero points: six or eight of them fit beside each other, the next launch's among them. `ahead` takes 8 more.
_MMA_MOST_REGISTERS = 96
_MMA_REGISTERS = {8: 80, 4: 64}


@triton.jit
def _packed_linear_kernel(
    x_ptr, out_ptr,
    words0_ptr, scales0_ptr, zeros0_ptr, rows0, column0,
    words1_ptr, scales1_ptr, zeros1_ptr, rows1, column1,
    words2_ptr, scales2_ptr, zeros2_ptr, rows2, column2,
    words3_ptr, scales3_ptr, zeros3_ptr, rows3, column3,
    one_high, one_low, ones, tokens, stride_xt, stride_ot,
    SLOTS: tl.constexpr, FOURS: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, QUADS_FOUR: tl.constexpr, QUADS_EIGHT: tl.constexpr, EXACT: tl.constexpr,
    STAGES: tl.constexpr, IS_EARLY: tl.constexpr, MMA: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    # One axis, tokens innermost: the tokens' programs share a matrix's rows in the L2 cache, and the other axes of a
    # grid end at 65,535.
    token = (tl.program_id(0) % tokens).to(tl.int64)
    program = tl.program_id(0) // tokens
    is_four = program >= 0
    words_ptr, scales_ptr, zeros_ptr, rows, column = words0_ptr, scales0_ptr, zeros0_ptr, rows0, column0
    start = 0
    end = tl.cdiv(rows0, ROWS)
    if SLOTS > 1:
        is_past = program >= end
        words_ptr = tl.where(is_past, words1_ptr, words_ptr)
        scales_ptr = tl.where(is_past, scales1_ptr, scales_ptr)
        zeros_ptr = tl.where(is_past, zeros1_ptr, zeros_ptr)
        rows = tl.where(is_past, rows1, rows)
        column = tl.where(is_past, column1, column)
        start = tl.where(is_past, end, start)
        if FOURS == 1:
            is_four = program < end
        end += tl.cdiv(rows1, ROWS)
    if SLOTS > 2:
        is_past = program >= end
        words_ptr = tl.where(is_past, words2_ptr, words_ptr)
        scales_ptr = tl.where(is_past, scales2_ptr, scales_ptr)
        zeros_ptr = tl.where(is_past, zeros2_ptr, zeros_ptr)
        rows = tl.where(is_past, rows2, rows)
        column = tl.where(is_past, column2, column)
        start = tl.where(is_past, end, start)
        if FOURS == 2:
            is_four = program < end
        end += tl.cdiv(rows2, ROWS)
    if SLOTS > 3:
        is_past = program >= end
        words_ptr = tl.where(is_past, words3_ptr, words_ptr)
        scales_ptr = tl.where(is_past, scales3_ptr, scales_ptr)
        zeros_ptr = tl.where(is_past, zeros3_ptr, zeros_ptr)
        rows = tl.where(is_past, rows3, rows)
        column = tl.where(is_past, column3, column)
        start = tl.where(is_past, end, start)
        if FOURS == 3:
            is_four = program < end
    first_row = (program - start) * ROWS
    x_ptr += token * stride_xt
    # With both formats there is one copy of the code for each, and a program goes through one.
    if FOURS == SLOTS:
        y = _dot_rows(
            words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows, one_high, one_low, ones,
            4, HAS_ZEROS, GROUP, COLUMNS, ROWS, QUADS_FOUR, EXACT, STAGES, IS_EARLY, MMA,
        )  # fmt: skip
    elif FOURS == 0:
        y = _dot_rows(
            words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows, one_high, one_low, ones,
            8, False, GROUP, COLUMNS, ROWS, QUADS_EIGHT, EXACT, STAGES, IS_EARLY, MMA,
        )  # fmt: skip
    else:
        y = tl.zeros([ROWS], tl.float32)
        if is_four:
            y += _dot_rows(
                words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows, one_high, one_low, ones,
                4, HAS_ZEROS, GROUP, COLUMNS, ROWS, QUADS_FOUR, EXACT, STAGES, IS_EARLY, MMA,
            )  # fmt: skip
        else:
            y += _dot_rows(
                words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows, one_high, one_low, ones,
                8, False, GROUP, COLUMNS, ROWS, QUADS_EIGHT, EXACT, STAGES, IS_EARLY, MMA,
            )  # fmt: skip
    own = first_row + tl.arange(0, ROWS)
    tl.store(out_ptr + token * stride_ot + column + own, y.to(out_ptr.dtype.element_ty), mask=own < rows)


@triton.jit
def _packed_silu_mul_kernel(
    x_ptr, out_ptr,
    gate_words_ptr, gate_scales_ptr, gate_zeros_ptr, up_words_ptr, up_scales_ptr, up_zeros_ptr,
    rows, one_high, one_low, ones, stride_xt, stride_ot,
    GATE_BITS: tl.constexpr, GATE_ZEROS: tl.constexpr, GATE_QUADS: tl.constexpr,
    UP_BITS: tl.constexpr, UP_ZEROS: tl.constexpr, UP_QUADS: tl.constexpr,
    GROUP: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, EXACT: tl.constexpr,
    STAGES: tl.constexpr, IS_EARLY: tl.constexpr, MMA: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    first_row = tl.program_id(1) * ROWS
    x_ptr += token * stride_xt
    if MMA is not None:
        y = mma_rows(
            (gate_words_ptr, up_words_ptr), (gate_scales_ptr, up_scales_ptr), (gate_zeros_ptr, up_zeros_ptr),
            x_ptr, first_row, rows, ones, GATE_ZEROS, COLUMNS, ROWS, GATE_QUADS, STAGES, IS_EARLY, MMA,
        )  # fmt: skip
        gate, up = tl.split(tl.trans(tl.reshape(y, [2, ROWS])))
    else:
        gate = dot_rows(
            gate_words_ptr, gate_scales_ptr, gate_zeros_ptr, x_ptr, first_row, rows, one_high, one_low,
            GATE_BITS, GATE_ZEROS, GROUP, COLUMNS, ROWS, GATE_QUADS, EXACT, STAGES, IS_EARLY,
        )  # fmt: skip
        up = dot_rows(
            up_words_ptr, up_scales_ptr, up_zeros_ptr, x_ptr, first_row, rows, one_high, one_low,
            UP_BITS, UP_ZEROS, GROUP, COLUMNS, ROWS, UP_QUADS, EXACT, STAGES, IS_EARLY,
        )  # fmt: skip
    own = first_row + tl.arange(0, ROWS)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + token * stride_ot + own, y.to(out_ptr.dtype.element_ty), mask=own < rows)


@triton.jit
def _dot_rows(
    words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows_total, one_high, one_low, ones,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    QUADS: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, IS_EARLY: tl.constexpr, MMA: tl.constexpr,
):  # fmt: skip
    if BITS == 4 and MMA is not None:
        y = mma_rows(
            (words_ptr,), (scales_ptr,), (zeros_ptr,), x_ptr, first_row, rows_total, ones,
            HAS_ZEROS, COLUMNS, ROWS, QUADS, STAGES, IS_EARLY, MMA,
        )  # fmt: skip
    else:
        y = dot_rows(
            words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows_total, one_high, one_low,
            BITS, HAS_ZEROS, GROUP, COLUMNS, ROWS, QUADS, EXACT, STAGES, IS_EARLY,
        )  # fmt: skip
    return y


def packed_linear(x: Tensor, matrices: Sequence[Planes]) -> tuple[Tensor, ...]:
    """The op of `ref/packed_linear.py` in one launch.

    Args:
        x: [..., K] bf16, fp16 or float32, the last dimension adjacent in memory.
        matrices: up to four, of one group size; those of 4 bits all with zero points or all without.

    Returns:
        One [..., N] for each matrix, dtype of x, float32 sums: side by side in one allocation [tokens, all N].
    """
    group_size, columns = matrices[0].group_size, matrices[0].shape[1]
    fours = [matrix for matrix in matrices if matrix.bits == 4]
    has_zeros = bool(fours) and fours[0].zeros is not None
    assert 1 <= len(matrices) <= _SLOTS
    assert all(matrix.group_size == group_size and matrix.shape[1] == columns for matrix in matrices)
    assert all((matrix.zeros is not None) == (has_zeros and matrix.bits == 4) for matrix in matrices)
    flat = _flat(x, columns)
    counts = [matrix.shape[0] for matrix in matrices]
    out = torch.empty(flat.shape[0], sum(counts), dtype=x.dtype, device=x.device)
    rows = rows_per_program(sum(counts), x.device)
    slots: list[Tensor | int] = []
    for index in sorted(range(len(matrices)), key=lambda index: matrices[index].bits):
        matrix = matrices[index]
        slots += [matrix.words, matrix.scales, _zeros(matrix), counts[index], sum(counts[:index])]
    slots += slots[:5] * (_SLOTS - len(matrices))
    mma = _mma(flat, matrices, rows)
    if mma["MMA"] is not None:
        rows = max(FEWEST_ROWS, rows)
    programs = sum(triton.cdiv(count, rows) for count in counts)
    if flat.shape[0] and programs:
        _packed_linear_kernel[(flat.shape[0] * programs,)](
            flat, out, *slots, ONE_HIGH, ONE_LOW, ONES_BFLOAT16, flat.shape[0], flat.stride(0), out.stride(0),
            SLOTS=len(matrices), FOURS=len(fours), HAS_ZEROS=has_zeros, GROUP=group_size, COLUMNS=columns,
            ROWS=rows, QUADS_FOUR=quads(columns, 4), QUADS_EIGHT=quads(columns, 8), EXACT=x.dtype == torch.float32,
            STAGES=_STAGES, num_warps=warps(columns, max(matrix.bits for matrix in matrices)),
            **mma, **overlapped(x.device),
        )  # fmt: skip
    return tuple(part.view(*x.shape[:-1], part.shape[-1]) for part in torch.split(out, counts, dim=1))


def packed_silu_mul(x: Tensor, gate: Planes, up: Planes) -> Tensor:
    """The op of `ref/packed_linear.py` in one launch; gate and product stay float32. x as for `packed_linear`."""
    rows_total, columns = gate.shape
    assert gate.group_size == up.group_size
    assert up.shape == gate.shape
    flat = _flat(x, columns)
    out = torch.empty(flat.shape[0], rows_total, dtype=x.dtype, device=x.device)
    rows = rows_per_program(rows_total, x.device)
    is_alike = gate.bits == up.bits and (gate.zeros is None) == (up.zeros is None)
    mma = _mma(flat, (gate, up), rows, is_linear=False) if is_alike else {"MMA": None}
    # A program takes as many rows of gate as of up, on tensor cores all at once.
    if mma["MMA"] is not None:
        rows = max(FEWEST_ROWS, rows // 2)
    if out.numel():
        _packed_silu_mul_kernel[(flat.shape[0], triton.cdiv(rows_total, rows))](
            flat, out,
            gate.words, gate.scales, _zeros(gate), up.words, up.scales, _zeros(up),
            rows_total, ONE_HIGH, ONE_LOW, ONES_BFLOAT16, flat.stride(0), out.stride(0),
            GATE_BITS=gate.bits, GATE_ZEROS=gate.zeros is not None, GATE_QUADS=quads(columns, gate.bits),
            UP_BITS=up.bits, UP_ZEROS=up.zeros is not None, UP_QUADS=quads(columns, up.bits),
            GROUP=gate.group_size, COLUMNS=columns, ROWS=rows, EXACT=x.dtype == torch.float32,
            STAGES=_STAGES, num_warps=warps(columns, max(gate.bits, up.bits)),
            **mma, **overlapped(x.device),
        )  # fmt: skip
    return out.view(*x.shape[:-1], rows_total)


def rows_per_program(rows: int, device: torch.device) -> int:
    """The most rows a program can take while every multiprocessor has programs enough to hide its loads."""
    wanted = _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    return next((count for count in _ROWS if rows >= count * wanted), 1)


def quads(columns: int, bits: int) -> int:
    """Runs of four words that a program takes at once: one for every thread, or the whole of a short row."""
    return min(32 * _WARPS, int(triton.next_power_of_2(columns * bits // 128)))


def warps(columns: int, bits: int) -> int:
    """Warps of a program; a short row has not work for all."""
    return max(1, quads(columns, bits) // 32)


def _mma(x: Tensor, matrices: Sequence[Planes], rows: int, is_linear: bool = True) -> dict[str, Any]:
    """Options of a launch whose programs take so many rows: MMA for the kernel, registers for the compiler."""
    columns, fours = x.shape[1], [matrix for matrix in matrices if matrix.bits == 4]
    is_grouped = bool(fours) and all(matrix.group_size == GROUP_OF_QUARTET for matrix in fours)
    card = capability(x.device)
    if not is_grouped or x.dtype != torch.bfloat16 or quads(columns, 4) < 32 or not _is_timed(matrices, card):
        return {"MMA": None}
    is_full = all(matrix.shape[0] % max(FEWEST_ROWS, rows) == 0 for matrix in matrices)
    ahead = _MMA.ahead if card >= 90 else 0
    is_plain = all(matrix.bits == 4 and matrix.zeros is None for matrix in matrices)
    is_narrow = is_linear and is_plain and quads(columns, 4) * 32 == columns and card == 90
    registers = _MMA_REGISTERS.get(rows, _MMA_MOST_REGISTERS) if is_narrow else _MMA_MOST_REGISTERS
    return {"MMA": replace(_MMA, is_full=is_full, ahead=ahead), "maxnreg": registers + (8 if ahead else 0)}


def _is_timed(matrices: Sequence[Planes], card: int) -> bool:
    """Whether tensor cores were found to be faster for such matrices on such a card."""
    return card == _MMA_CARD and sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices) <= _MMA_MOST_WEIGHTS


def _flat(x: Tensor, columns: int) -> Tensor:
    assert x.shape[-1] == columns
    assert x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    flat = x.reshape(-1, columns)
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _zeros(matrix: Planes) -> Tensor:
    """The zero points, or any bytes where there are none: the kernel does not read them."""
    return matrix.scales.view(torch.uint8) if matrix.zeros is None else matrix.zeros
