"""Lightning attention over many tokens: one program for a head, a slice of the value channels and a segment of tokens.

A program goes through its tokens tile by tile with its part of the state in registers, so q, k, v are read from device
memory once and nothing but the output is written: 4 x 64 MiB for 8,192 tokens of 32 heads x 128 in bfloat16, 0.09 ms
at 3 TB/s. The slices of a head share the q and k tiles through the L2 cache and each form q k^T for themselves: with
tiles of 64 tokens and slices of 32 channels 47 GFLOP instead of the 34 of one whole slice, which buys 128 programs
from 32 heads.

Where heads and slices give fewer programs than there are multiprocessors, the tokens are cut into segments: a first
launch finds what each segment adds to the state, a second one starts every segment from the sum of those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.narrow import LEAST_CHANNELS, widened
from salalocal_kernels.gpu.target import capability, multiprocessors


@dataclass(frozen=True)
class _Config:
    """Sizes of the work and Triton's options.

    Attributes:
        tile: tokens whose pairwise products are formed at once.
        slice: value channels of a program.
        num_warps, num_stages: Triton's.
        loads_twice: whether k is asked for in both orders. Where products take their operands from registers, k on the
            left and k on the right lie differently there, and Triton 3.6 leaves such a load out of its pipeline. The
            second copy comes from the L1 or L2 cache.
        residents: programs for which a multiprocessor has room; tokens are cut into segments until there are so many.
    """

    tile: int
    slice: int
    num_warps: int
    num_stages: int
    loads_twice: bool = False
    residents: int = 1


# By the size of an element in bytes. Every register of a thread is used: wider slices and longer tiles spill from
# capability 9.0 down, and float32, which has no matrix unit here, with anything above 16 x 16.
_HOPPER = {2: _Config(64, 32, 4, 3), 4: _Config(16, 16, 8, 2)}
_OTHERS = {2: _Config(32, 32, 4, 3, loads_twice=True), 4: _Config(16, 16, 8, 2)}
# The second launch reads k and v again; below so many tokens of a segment the programs it adds are not worth that.
_MIN_SEGMENT_TOKENS = 512


@triton.jit
def _exp(x, IS_EXACT: tl.constexpr):
    """exp of x <= 0. The GPU's own instruction is off by up to 2.4e-7 of the value, which is nothing beside 16 bits and
    more than float32's rounding; exactly, the rest beside a power of two goes through its series."""
    if IS_EXACT:
        power = tl.floor(x * 1.4426950408889634 + 0.5)
        # ln 2 in two parts, the first short enough that its product with any power is exact.
        rest = (x - power * 0.693359375) + power * 2.12194440054690583e-4
        series = 1.0 + rest / 8
        for term in tl.static_range(7, 0, -1):
            series = 1.0 + rest / term * series
        return series * tl.exp2(power)
    return tl.exp(x)


@triton.jit(do_not_specialize=["tokens", "segment_tokens"])
def _lightning_prefill_kernel(
    q_ptr, k_ptr, v_ptr, slopes_ptr, state_ptr, added_ptr, out_ptr, last_ptr,
    tokens, segment_tokens, scale,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    GROUP: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr,
    WRITES_OUTPUT: tl.constexpr, IS_SEGMENTED: tl.constexpr, IS_SPLIT: tl.constexpr,
    LOADS_TWICE: tl.constexpr,
):  # fmt: skip
    part, head, segment = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    first = segment * segment_tokens
    stop = tl.minimum(first + segment_tokens, tokens)
    rows = tl.arange(0, TILE)
    key_dims = tl.arange(0, DK)
    value_dims = part * SLICE + tl.arange(0, SLICE)
    slope = tl.load(slopes_ptr + head)
    state_offsets = key_dims[:, None] * DV + value_dims[None, :]
    own = head.to(tl.int64) * DK * DV

    state = tl.zeros([DK, SLICE], tl.float32)
    if segment == 0:
        state = tl.load(state_ptr + own + state_offsets)
    elif WRITES_OUTPUT and IS_SEGMENTED:
        # The first segment's sum holds the state given; the others start from nothing.
        fade = _exp(-slope * segment_tokens, not IS_SPLIT)
        for before in range(segment):
            added = tl.load(added_ptr + tl.cast(before, tl.int64) * heads * DK * DV + own + state_offsets)
            state = state * fade + added

    distance = (rows[:, None] - rows[None, :]).to(tl.float32)
    # Only i >= j is kept, so no exponent is positive and nothing overflows, however steep the slope.
    within = tl.where(distance >= 0, _exp(-slope * tl.maximum(distance, 0.0), not IS_SPLIT), 0.0) * scale
    from_state = _exp(-slope * (rows + 1).to(tl.float32), not IS_SPLIT) * scale

    k_head = k_ptr + (head // GROUP).to(tl.int64) * stride_kh
    v_head = v_ptr + (head // GROUP).to(tl.int64) * stride_vh
    q_head = q_ptr + head.to(tl.int64) * stride_qh
    out_head = out_ptr + head.to(tl.int64) * stride_oh
    for start in range(first, stop, TILE):
        size = tl.minimum(stop - start, TILE)
        is_token = (rows < size)[:, None]
        at = tl.cast(start, tl.int64)
        k = tl.load(k_head + at * stride_kt + rows[:, None] * stride_kt + key_dims[None, :], mask=is_token, other=0.0)
        v = tl.load(v_head + at * stride_vt + rows[:, None] * stride_vt + value_dims[None, :], mask=is_token, other=0.0)
        k_columns = tl.trans(k)
        if LOADS_TWICE:
            k_columns = tl.load(
                k_head + at * stride_kt + rows[None, :] * stride_kt + key_dims[:, None],
                mask=(rows < size)[None, :], other=0.0,
            )  # fmt: skip
        if WRITES_OUTPUT:
            q = tl.load(
                q_head + at * stride_qt + rows[:, None] * stride_qt + key_dims[None, :], mask=is_token, other=0.0
            )
            weights = tl.dot(q, tl.trans(k), input_precision="ieee") * within
            out = tl.dot(q, state.to(q.dtype), input_precision="ieee") * from_state[:, None]
            out = tl.dot(weights.to(v.dtype), v, acc=out, input_precision="ieee")
            tl.store(
                out_head + at * stride_ot + rows[:, None] * stride_ot + value_dims[None, :],
                out.to(out_ptr.dtype.element_ty),
                mask=is_token,
            )
        to_end = _exp(-slope * tl.maximum(size - 1 - rows, 0).to(tl.float32), not IS_SPLIT)
        faded = v.to(tl.float32) * to_end[:, None]
        state = state * _exp(-slope * size.to(tl.float32), not IS_SPLIT)
        near = faded.to(v.dtype)
        state = tl.dot(k_columns, near, acc=state, input_precision="ieee")
        if IS_SPLIT:
            # k and v come as 16 bits, but v times its decay does not fit in them: without what is left over the
            # state would be no better than 16 bits, whatever it is kept in.
            state = tl.dot(k_columns, (faded - near.to(tl.float32)).to(v.dtype), acc=state, input_precision="ieee")

    if not WRITES_OUTPUT:
        tl.store(added_ptr + segment.to(tl.int64) * heads * DK * DV + own + state_offsets, state)
    elif segment == tl.num_programs(2) - 1:
        tl.store(last_ptr + own + state_offsets, state)


def lightning_prefill(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The op of `ref/lightning.py`, same arguments and result; q, k, v of one dtype (bfloat16, float16 or float32), the
    state float32, head dimensions powers of two.

    With 16-bit inputs the state is rounded to their dtype where it meets q, not where it is kept.
    """
    if min(q.shape[-1], v.shape[-1]) < LEAST_CHANNELS:
        wide_state = widened(widened(state).transpose(1, 2)).transpose(1, 2)
        wide, last = lightning_prefill(widened(q), widened(k), widened(v), slopes, scale, wide_state)
        return wide[..., : v.shape[-1]], last[:, : q.shape[-1], : v.shape[-1]].contiguous()
    tokens, heads, key_dim = q.shape
    value_dim = v.shape[-1]
    out = torch.empty(tokens, heads, value_dim, dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out, state
    assert q.dtype == k.dtype == v.dtype
    assert q.element_size() <= state.element_size() == 4
    assert all(dim >= 16 and dim == triton.next_power_of_2(dim) for dim in (key_dim, value_dim))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    state, slopes = state.contiguous(), slopes.contiguous()
    last = torch.empty_like(state)
    config = _config(q)
    slices = triton.cdiv(value_dim, config.slice)
    segments, segment_tokens = _segments(
        tokens, heads * slices, config.residents * multiprocessors(q.device), config.tile
    )
    added = torch.empty(segments - 1, *state.shape, dtype=state.dtype, device=state.device) if segments > 1 else last
    for writes_output in (False, True) if segments > 1 else (True,):
        _lightning_prefill_kernel[(slices, heads, segments if writes_output else segments - 1)](
            q, k, v, slopes, state, added, out, last,
            tokens, segment_tokens, scale,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), out.stride(0), out.stride(1),
            GROUP=heads // k.shape[1], DK=key_dim, DV=value_dim, TILE=config.tile, SLICE=min(config.slice, value_dim),
            WRITES_OUTPUT=writes_output, IS_SEGMENTED=segments > 1, IS_SPLIT=q.element_size() == 2,
            LOADS_TWICE=config.loads_twice,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out, last


def _config(q: Tensor) -> _Config:
    configs = _HOPPER if capability(q.device) == 90 else _OTHERS
    return configs[q.element_size()]


def _segments(tokens: int, programs: int, places: int, tile: int) -> tuple[int, int]:
    """How many segments, and the tokens of each but the last: a whole number of tiles."""
    wanted = min(max(1, places // programs), max(1, tokens // _MIN_SEGMENT_TOKENS))
    segment_tokens = triton.cdiv(triton.cdiv(tokens, wanted), tile) * tile
    return triton.cdiv(tokens, segment_tokens), segment_tokens
