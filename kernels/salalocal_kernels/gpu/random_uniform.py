"""A random number from a seed and a counter in memory, for a captured graph that draws anew in every replay."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _random_uniform_kernel(seed_ptr, counter_ptr, out_ptr):
    counter = tl.load(counter_ptr).to(tl.int32)
    first, second, _, _ = tl.randint4x(tl.load(seed_ptr), counter)
    high = (first.to(tl.uint32, bitcast=True) >> 5).to(tl.float64)
    low = (second.to(tl.uint32, bitcast=True) >> 6).to(tl.float64)
    tl.store(out_ptr, (high * 67108864.0 + low) / 9007199254740992.0)


def random_uniform(seed: Tensor, counter: Tensor) -> Tensor:
    """The op of `ref/random_uniform.py`, same arguments and result, bit for bit."""
    out = torch.empty(1, dtype=torch.float64, device=seed.device)
    _random_uniform_kernel[(1,)](seed, counter, out, num_warps=1)
    return out
