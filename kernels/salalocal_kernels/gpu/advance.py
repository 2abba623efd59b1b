"""The inputs of the next decode step, in one launch of one thread's work.

The host's copy of the token is written through its address: a copy by the driver would be one more node of the graph.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from salalocal_kernels.gpu.early import let_next_begin, overlapped, wait


@triton.jit
def _advance_kernel(inputs_ptr, chosen_ptr, told_ptr, IS_EARLY: tl.constexpr):
    let_next_begin(IS_EARLY)
    wait(IS_EARLY)
    chosen = tl.load(chosen_ptr)
    tl.store(told_ptr, chosen)
    tl.store(inputs_ptr, tl.maximum(chosen, 0))
    tl.store(inputs_ptr + 1, tl.load(inputs_ptr + 1) + 1)
    tl.store(inputs_ptr + 3, tl.load(inputs_ptr + 3) + 1)
    tl.store(inputs_ptr + 4, tl.load(inputs_ptr + 4) + 1)


def advance(inputs: Tensor, chosen: Tensor, told: Tensor) -> None:
    """The op of `ref/advance.py`, same arguments and result; `inputs` contiguous."""
    assert inputs.is_contiguous()
    _advance_kernel[(1,)](inputs, chosen, told, num_warps=1, **overlapped(inputs.device))
