"""Other people's kernels for the same ops, where their packages are installed. Knows no clock.

Checked with fla-core 0.6.0 and bitsandbytes 0.50.2.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from salalocal_kernels.gpu.bench.cases import Peer

# Name of a package that is imported -> the one that is installed.
_PACKAGES = {"fla": "fla-core", "bitsandbytes": "bitsandbytes"}


def missing() -> list[str]:
    """Packages whose kernels would be timed if they were installed."""
    return [name for module, name in _PACKAGES.items() if not _is_there(module)]


def chunked_lightning(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> Peer | None:
    """fla's chunk_simple_gla as `lightning_prefill` with a scale of D^-0.5: q, k, v [T, H, D], state [H, D, D]."""

    def prepare() -> Callable[[], object]:
        from fla.ops.simple_gla import chunk_simple_gla

        given = {"g_gamma": -slopes, "initial_state": state[None], "output_final_state": True}
        return partial(chunk_simple_gla, q[None], k[None], v[None], **given)

    return Peer("fla chunk_simple_gla", prepare) if _is_there("fla") else None


def recurrent_lightning(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, states: Sequence[Tensor]) -> Peer | None:
    """fla's fused_recurrent_simple_gla of one token, q, k, v [H, D], from one state [H, D, D] after the other.

    Without the norms, RoPE and gate of `lightning_step`.
    """

    def prepare() -> Callable[[], object]:
        from fla.ops.simple_gla import fused_recurrent_simple_gla

        one = [x[None, None] for x in (q, k, v)]
        step = partial(fused_recurrent_simple_gla, *one, g_gamma=-slopes, output_final_state=True)
        following = itertools.cycle(states)
        return lambda: step(initial_state=next(following)[None])

    return Peer("fla fused_recurrent_simple_gla", prepare) if _is_there("fla") else None


def four_bit_linear(x: Tensor, rows: int, copies: int) -> Peer | None:
    """bitsandbytes' product of one token x [1, K] with matrices [rows, K] in NF4, blocks of 64, one after the other.

    A weight takes 4.5 bits, where ours takes 4.125.
    """

    def prepare() -> Callable[[], object]:
        from bitsandbytes import matmul_4bit
        from bitsandbytes.functional import quantize_4bit

        made = (torch.randn(rows, x.shape[1], device=x.device, dtype=x.dtype) for _ in range(copies))
        packed = [quantize_4bit(matrix, blocksize=64, quant_type="nf4") for matrix in made]
        following = itertools.cycle(packed)

        def call() -> object:
            codes, state = next(following)
            return matmul_4bit(x, codes.t(), state)

        return call

    return Peer("bitsandbytes matmul_4bit", prepare) if _is_there("bitsandbytes") else None


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
