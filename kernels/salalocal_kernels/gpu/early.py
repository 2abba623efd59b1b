"""Launches whose programs begin while the launch before them ends (programmatic dependent launch, capability 9.0 on).

What a program may read before `wait` is what no launch of this decode step writes: weights. Everything else may still
be on its way, also from launches further back than the one before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from salalocal_kernels.gpu.target import capability


@triton.jit
def let_next_begin(IS_EARLY: tl.constexpr):
    """The next launch may begin once all programs of this one have come here; it waits for their end by itself."""
    if IS_EARLY:
        gdc_launch_dependents()


@triton.jit
def wait(IS_EARLY: tl.constexpr):
    """Until the launch before this one has ended, and with it all before."""
    if IS_EARLY:
        gdc_wait()


def overlapped(device: torch.device) -> dict[str, bool]:
    """Options of such a launch; IS_EARLY is for the kernel, which has to call both functions above."""
    is_early = capability(device) >= 90
    return {"IS_EARLY": True, "launch_pdl": True} if is_early else {"IS_EARLY": False}
