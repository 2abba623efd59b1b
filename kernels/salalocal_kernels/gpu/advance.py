"""The inputs of the next decode step, in one launch of one thread's work."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait


@triton.jit
def _advance_kernel(inputs_ptr, chosen_ptr, IS_EARLY: tl.constexpr):
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    tl.store(inputs_ptr, tl.maximum(tl.load(chosen_ptr), 0))
    tl.store(inputs_ptr + 1, tl.load(inputs_ptr + 1) + 1)
    tl.store(inputs_ptr + 3, tl.load(inputs_ptr + 3) + 1)


def advance(inputs: Tensor, chosen: Tensor) -> None:
    """The op of `ref/advance.py`, same arguments and result; both contiguous."""
    assert inputs.is_contiguous()
    _advance_kernel[(1,)](inputs, chosen, num_warps=1, **overlapped(inputs.device))
