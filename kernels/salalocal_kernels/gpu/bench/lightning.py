"""The lightning layer's kernels at the released model's shape, 32 heads x 128, in bfloat16. Knows no clock."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor

from salalocal_kernels.gpu.bench import peers
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
        Case("lightning_prefill", shape, bare, 4 * rows, flop, peer=peers.chunked_lightning(q, k, v, slopes, state)),
        Case("lightning_prefill", around, whole, 5 * rows + table.nbytes, flop),
        Case("qk_norm_rope", shape, partial(qk_norm_rope, q, k, weight, weight, EPS, table), 4 * rows + table.nbytes),
        Case("norm_gate", shape, partial(norm_gate, v.flatten(1), out_weight, z.flatten(1), EPS), 3 * rows),
    ]


def _decode() -> list[Case]:
    q, k, v = (_random(HEADS, DIM) for _ in range(3))
    weight, out_weight, gate = _random(DIM), _random(CHANNELS), _random(CHANNELS)
    table = rope_table(torch.tensor([100_000], device="cuda"), DIM, 10000.0)
    slopes = torch.tensor(lightning_slopes(HEADS), device="cuda")
    states = torch.zeros(LAYERS, HEADS, DIM, DIM, device="cuda")
    following = itertools.cycle(states)
    arrived = torch.zeros(1, dtype=torch.int32, device="cuda")

    def step() -> object:
        state = next(following)
        return lightning_step(q, k, v, weight, weight, table, slopes, 0.1, state, out_weight, gate, EPS, arrived)

    peer = peers.recurrent_lightning(q, k, v, slopes, tuple(states))
    return [Case("lightning_step", "1 token", step, 2 * HEADS * DIM * DIM * 4, turns=LAYERS, peer=peer)]


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")
