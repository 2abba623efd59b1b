"""The likeliest token on a GPU: programs that look at a part of the logits each, the last of which decides.

Bound by latency: 73,448 logits are 287 KiB, which 36 multiprocessors have read before one would have read an eighth of
them. The last program to arrive compares what all have found, as in `lightning_decode`: no launch more, and no program
waits for another.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait

# Logits of a program; with 8 warps a thread has 8 of them, all asked for at once.
_PART = 2048
_WARPS = 8
_NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
def _greedy_token_kernel(
    logits_ptr, best_ptr, place_ptr, arrived_ptr, out_ptr, count,
    PART: tl.constexpr, PARTS: tl.constexpr, PARTS_PADDED: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    part = tl.program_id(0)
    token = part * PART + tl.arange(0, PART)
    x = tl.load(logits_ptr + token, mask=token < count, other=-float("inf")).to(tl.float32)
    # NaN would be lost among numbers: a part with a logit that is none has the place -1.
    is_bad = tl.max(((x != x) | (x == float("inf"))).to(tl.int32), 0) > 0
    best = tl.max(tl.where(x != x, -float("inf"), x), 0)
    place = tl.min(tl.where(x == best, token, _NOWHERE), 0)
    tl.store(best_ptr + part, best)
    tl.store(place_ptr + part, tl.where(is_bad, -1, place))
    tl.debug_barrier()  # every thread's stores lie before the one thread's addition
    if tl.atomic_add(arrived_ptr, 1, sem="acq_rel", scope="gpu") == PARTS - 1:
        tl.debug_barrier()
        tl.store(arrived_ptr, 0)  # for the next launch
        parts = tl.arange(0, PARTS_PADDED)
        # Around the L1 cache, which knows nothing of other multiprocessors' stores.
        bests = tl.load(best_ptr + parts, mask=parts < PARTS, other=-float("inf"), cache_modifier=".cg")
        places = tl.load(place_ptr + parts, mask=parts < PARTS, other=_NOWHERE, cache_modifier=".cg")
        peak = tl.max(bests, 0)
        first = tl.min(tl.where(bests == peak, places, _NOWHERE), 0)
        is_bad_anywhere = (tl.min(places, 0) < 0) | (peak == -float("inf"))
        tl.store(out_ptr, tl.where(is_bad_anywhere, -1, first).to(tl.int64))


def greedy_token(logits: Tensor) -> Tensor:
    """The op of `ref/greedy_token.py`, same arguments and result, for dtypes up to float32, adjacent in memory.

    Launches on one device must follow each other, as those of one stream or captured graph do: they share a counter.
    """
    assert logits.stride(0) == 1
    device = logits.device
    out = torch.empty(1, dtype=torch.int64, device=device)
    part = min(_PART, int(triton.next_power_of_2(logits.shape[0])))
    parts = triton.cdiv(logits.shape[0], part)
    best = torch.empty(parts, dtype=torch.float32, device=device)
    place = torch.empty(parts, dtype=torch.int32, device=device)
    _greedy_token_kernel[(parts,)](
        logits, best, place, _arrived(device), out, logits.shape[0],
        PART=part, PARTS=parts, PARTS_PADDED=triton.next_power_of_2(parts),
        num_warps=max(1, min(_WARPS, part // 256)), **overlapped(device),
    )  # fmt: skip
    return out


@functools.cache
def _arrived(device: torch.device) -> Tensor:
    """[1] int32, the counter of programs that have finished; every launch leaves it 0."""
    return torch.zeros(1, dtype=torch.int32, device=device)
