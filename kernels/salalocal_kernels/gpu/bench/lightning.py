"""The lightning layer's kernels at the released model's shape, 32 heads x 128, in bfloat16. Knows no clock."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from salalocal_kernels.gpu.bench.cases import Case
from salalocal_kernels.gpu.lightning_decode import lightning_step
from salalocal_kernels.gpu.lightning_prefill import lightning_prefill
from salalocal_kernels.gpu.norm_gate import norm_gate
from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope
from salalocal_kernels.ref.lightning import lightning_slopes
from salalocal_kernels.ref.rope import rope_table

HEADS, DIM, EPS = 32, 128, 1e-6
CHANNELS = HEADS * DIM
LAYERS = 24
"""A decode step goes through so many states, 50 MB: more than the L2 cache holds."""


def cases() -> list[Case]:
    """Prefill of a chunk, alone and with what stands around it, and one token."""
    return [*itertools.chain.from_iterable(_prefill(tokens) for tokens in (2048, 8192, 32768)), *_decode()]


def around(tokens: int) -> Case:
    """Prefill of a chunk with norms, RoPE and gate."""
    return _prefill(tokens)[1]


def _prefill(tokens: int) -> list[Case]:
    q, k, v, z = (_random(tokens, HEADS, DIM) for _ in range(4))
    weight, out_weight = _random(DIM), _random(CHANNELS)
    table = rope_table(torch.arange(tokens, device="cuda"), DIM, 10000.0)
    slopes = torch.tensor(lightning_slopes(HEADS), device="cuda")
    state = torch.zeros(HEADS, DIM, DIM, device="cuda")
    rows, shape = tokens * CHANNELS * 2, f"{tokens:,} tokens"
    # Tiles of 64 tokens, without what the slices of a head repeat.
    flop = tokens * HEADS * DIM * (4 * 64 + 4 * DIM)

    def whole() -> Tensor:
        queries, keys = qk_norm_rope(q, k, weight, weight, EPS, table)
        out, _ = lightning_prefill(queries, keys, v, slopes, DIM**-0.5, state)
        return norm_gate(out.flatten(1), out_weight, z.flatten(1), EPS)

    bare = partial(lightning_prefill, q, k, v, slopes, DIM**-0.5, state)
    around = f"{shape}, with norms, RoPE and gate"
    return [
        Case("lightning_prefill", shape, bare, 4 * rows, flop, peer=_fla_chunked(q, k, v, slopes, state)),
        Case("lightning_prefill", around, whole, 5 * rows + table.nbytes, flop),
        Case("qk_norm_rope", shape, partial(qk_norm_rope, q, k, weight, weight, EPS, table), 4 * rows + table.nbytes),
        Case("norm_gate", shape, partial(norm_gate, v.flatten(1), out_weight, z.flatten(1), EPS), 3 * rows),
    ]


def _decode() -> list[Case]:
    q, k, v = (_random(HEADS, DIM) for _ in range(3))
    weight, out_weight, gate = _random(DIM), _random(CHANNELS), _random(CHANNELS)
    table = rope_table(torch.tensor([100_000], device="cuda"), DIM, 10000.0)
    slopes = torch.tensor(lightning_slopes(HEADS), device="cuda")
    states = itertools.cycle(torch.zeros(LAYERS, HEADS, DIM, DIM, device="cuda"))
    arrived = torch.zeros(1, dtype=torch.int32, device="cuda")

    def step() -> object:
        return lightning_step(q, k, v, weight, weight, table, slopes, 0.1, next(states), out_weight, gate, EPS, arrived)

    peer = _fla_recurrent(q, k, v, slopes, states)
    return [Case("lightning_step", "1 token", step, 2 * HEADS * DIM * DIM * 4, turns=LAYERS, peer=peer)]


def _fla_chunked(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor
) -> tuple[str, Callable[[], object]] | None:
    if importlib.util.find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    decay = -slopes.expand(1, q.shape[0], HEADS)
    call = partial(
        chunk_simple_gla, q[None], k[None], v[None], g=decay, initial_state=state[None], output_final_state=True
    )
    return "fla chunk_simple_gla", call


def _fla_recurrent(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, states: itertools.cycle[Tensor]
) -> tuple[str, Callable[[], object]] | None:
    if importlib.util.find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    one = (x[None, None] for x in (q, k, v))
    call = partial(fused_recurrent_simple_gla, *one, g=-slopes.expand(1, 1, HEADS), output_final_state=True)
    return "fla fused_recurrent_simple_gla", lambda: call(initial_state=next(states)[None])


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")
