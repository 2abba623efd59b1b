"""Products of 8-bit codes on a GPU, for many tokens: fp8 from sm_89 on, int8 from sm_80 on.

Bound by the matrix units. A scale for each channel is applied once, to the result. Scales of groups along K need every
group's sum in float32: one multiplication per result for each group of 128, a quarter of the matrix units' own time on
an H100 where the two do not overlap, so a tile is half as wide there, to leave registers for two sums. What it buys is
the file's own numbers: codes of 4 bits are integers that int8 and e4m3 hold exactly (`unpack_planes.plane_steps`).

On an H100 PyTorch's own product of fp8 with scales for each channel (`torch._scaled_mm`) is nearer to what the matrix
units can do than this kernel, which reads through pointers; so that serves there what it can, and this the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Tokens and channels of a program, columns of a step, and Triton's options."""

    tokens: int
    channels: int
    columns: int
    warps: int
    stages: int


# Bytes of shared memory: (tokens + channels) * columns * stages. A block has 227 KiB on sm_90, 163 on sm_80, else 99.
_CHANNEL_TILES = {
    90: Tile(tokens=128, channels=256, columns=128, warps=8, stages=4),
    80: Tile(tokens=128, channels=256, columns=64, warps=8, stages=4),
    0: Tile(tokens=128, channels=128, columns=64, warps=8, stages=4),
}
# wgmma adds fp8 products with fewer bits than float32 has; each step's sum is therefore added outside, in registers
# that a wider tile would not have.
_FP8_TILES = {**_CHANNEL_TILES, 90: Tile(tokens=128, channels=128, columns=128, warps=8, stages=4)}
_GROUP_TILES = {
    90: Tile(tokens=128, channels=128, columns=128, warps=8, stages=4),
    80: Tile(tokens=128, channels=128, columns=128, warps=8, stages=3),
    0: Tile(tokens=128, channels=64, columns=128, warps=4, stages=3),
}
# Programs that follow each other take so many tiles of tokens for the same channels, which then come from the L2 cache.
_TILES_TOGETHER = 8
# Where `torch._scaled_mm` takes a scale for each row and channel at full speed.
_ROWWISE_CAPABILITY = 90
# Up to so many columns the sums may stay in the matrix units, which keep some 14 bits of them: with four times as many
# the error passed twice that of rounding the result to bfloat16.
_FAST_COLUMNS = 4096


@triton.jit(do_not_specialize=["tokens"])
def _scaled_linear_kernel(
    x_ptr, x_scales_ptr, weight_ptr, weight_scales_ptr, out_ptr, tokens, channels, stride_xt, stride_wn, stride_ot,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr,
    TOGETHER: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    token_tiles = tl.cdiv(tokens, TOKENS)
    channel_tiles = tl.cdiv(channels, CHANNELS)
    in_band = TOGETHER * channel_tiles
    band = tl.program_id(0) // in_band
    tall = tl.minimum(token_tiles - band * TOGETHER, TOGETHER)
    place = tl.program_id(0) % in_band
    first_token = (band * TOGETHER + place % tall) * TOKENS
    first_channel = (place // tall) * CHANNELS
    # Rows past the last one repeat it and are not stored, so that loads need no mask.
    rows = first_token + tl.arange(0, TOKENS)
    own = first_channel + tl.arange(0, CHANNELS)
    x_rows = tl.minimum(rows, tokens - 1).to(tl.int64)
    w_rows = tl.minimum(own, channels - 1).to(tl.int64)
    at = tl.arange(0, STEP)
    x_ptrs = x_ptr + x_rows[:, None] * stride_xt + at[None, :]
    w_ptrs = weight_ptr + w_rows[None, :] * stride_wn + at[:, None]
    total = tl.zeros([TOKENS, CHANNELS], tl.float32 if GROUP > 0 else SUM)
    for step in range(0, COLUMNS, STEP):
        if COLUMNS % STEP == 0:
            x = tl.load(x_ptrs + step)
            w = tl.load(w_ptrs + step)
        else:
            x = tl.load(x_ptrs + step, mask=(step + at < COLUMNS)[None, :], other=0.0)
            w = tl.load(w_ptrs + step, mask=(step + at < COLUMNS)[:, None], other=0.0)
        if GROUP > 0:
            scales = tl.load(weight_scales_ptr + w_rows * (COLUMNS // GROUP) + step // GROUP).to(tl.float32)
            total += tl.dot(x, w, out_dtype=SUM).to(tl.float32) * scales[None, :]
        elif tl.int32 != SUM:
            total = tl.dot(x, w, total, max_num_imprecise_acc=STEP, out_dtype=SUM)
        else:
            total = tl.dot(x, w, total, out_dtype=SUM)
    y = total.to(tl.float32) * tl.load(x_scales_ptr + x_rows)[:, None]
    if GROUP == 0:
        y *= tl.load(weight_scales_ptr + w_rows)[None, :]
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * stride_ot + own[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=(rows < tokens)[:, None] & (own < channels)[None, :])


def scaled_linear(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The op of `ref/scaled_linear.py`, same arguments and result; rows of adjacent codes, scales contiguous.

    Sums are exact for int8 (in int32), in float32 at least every 128 columns for fp8, and over groups in float32; where
    PyTorch serves fp8, only over more than _FAST_COLUMNS columns.
    """
    (tokens, columns), channels = x.shape, weight.shape[0]
    assert x.dtype == weight.dtype
    assert x.stride(1) == weight.stride(1) == 1
    has_groups = weight_scales.ndim == 2
    group = columns // weight_scales.shape[1] if has_groups else 0
    if not tokens or not channels:
        return torch.empty(tokens, channels, dtype=dtype, device=x.device)
    capability = _capability(x.device)
    if capability == _ROWWISE_CAPABILITY and _serves_rowwise(x, weight, weight_scales, dtype):
        is_short = columns <= _FAST_COLUMNS
        return torch._scaled_mm(
            x, weight.t(), x_scales[:, None], weight_scales[None], out_dtype=dtype, use_fast_accum=is_short
        )
    out = torch.empty(tokens, channels, dtype=dtype, device=x.device)
    is_int8 = x.dtype == torch.int8
    tile = _tile(_GROUP_TILES if has_groups else _CHANNEL_TILES if is_int8 else _FP8_TILES, capability)
    programs = triton.cdiv(tokens, tile.tokens) * triton.cdiv(channels, tile.channels)
    _scaled_linear_kernel[(programs,)](
        x, x_scales, weight, weight_scales.contiguous(), out, tokens, channels, x.stride(0), weight.stride(0), channels,
        COLUMNS=columns, GROUP=group, TOKENS=tile.tokens, CHANNELS=tile.channels,
        STEP=min(tile.columns, group) if has_groups else tile.columns,
        TOGETHER=_TILES_TOGETHER, SUM=tl.int32 if is_int8 else tl.float32,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _serves_rowwise(x: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies these: rows and columns in sixteens, a float32 scale for each channel, to bfloat16."""
    is_plain = weight_scales.ndim == 1 and weight_scales.dtype == torch.float32 and weight_scales.is_contiguous()
    is_aligned = not (x.shape[1] % 16 or weight.shape[0] % 16 or x.stride(0) % 16 or weight.stride(0) % 16)
    return is_plain and is_aligned and x.dtype == torch.float8_e4m3fn and dtype == torch.bfloat16


def _tile(tiles: dict[int, Tile], capability: int) -> Tile:
    return tiles.get(capability, tiles[0])


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return 10 * major + minor
