"""The likeliest token on a GPU: one program that looks at all logits.

Bound by latency: 73,448 logits are 287 KiB, which one multiprocessor reads in some microseconds; a second launch to
compare the results of several would take as long.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait

_AT_ONCE = 8192
_WARPS = 32
_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def _greedy_token_kernel(logits_ptr, out_ptr, count, SIZE: tl.constexpr, AT_ONCE: tl.constexpr, IS_EARLY: tl.constexpr):
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    lane = tl.arange(0, AT_ONCE)
    best = tl.full([AT_ONCE], -float("inf"), tl.float32)
    place = tl.full([AT_ONCE], _NOWHERE, tl.int32)
    is_bad = tl.zeros([AT_ONCE], tl.int32)
    for start in range(0, SIZE, AT_ONCE):
        x = tl.load(logits_ptr + start + lane, mask=start + lane < count, other=-float("inf")).to(tl.float32)
        is_bad |= ((x != x) | (x == float("inf"))).to(tl.int32)
        is_better = x > best
        place = tl.where(is_better, start + lane, place)
        best = tl.where(is_better, x, best)
    peak = tl.max(best, 0)
    first = tl.min(tl.where(best == peak, place, _NOWHERE), 0)
    is_bad_anywhere = (tl.max(is_bad, 0) > 0) | (peak == -float("inf"))
    tl.store(out_ptr, tl.where(is_bad_anywhere, -1, first).to(tl.int64))


def greedy_token(logits: Tensor) -> Tensor:
    """The op of `ref/greedy_token.py`, same arguments and result, for dtypes up to float32, adjacent in memory."""
    assert logits.stride(0) == 1
    out = torch.empty(1, dtype=torch.int64, device=logits.device)
    at_once = min(_AT_ONCE, int(triton.next_power_of_2(logits.shape[0])))
    _greedy_token_kernel[(1,)](
        logits, out, logits.shape[0], SIZE=triton.cdiv(logits.shape[0], at_once) * at_once, AT_ONCE=at_once,
        num_warps=max(1, min(_WARPS, at_once // 256)), **overlapped(logits.device),
    )  # fmt: skip
    return out
