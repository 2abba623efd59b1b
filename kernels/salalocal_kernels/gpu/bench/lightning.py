"""The lightning layer's kernels at the released model's shape, 32 heads x 128, in bfloat16."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

from salalocal_kernels.gpu import lightning_decode, lightning_prefill
from salalocal_kernels.gpu.lightning_prefill import _Config
from salalocal_kernels.gpu.norm_gate import norm_gate
from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope
from salalocal_kernels.ref.lightning import lightning_slopes
from salalocal_kernels.ref.rope import rope_table

Case = tuple[str, Callable[[], object], int, int]

HEADS, DIM, EPS = 32, 128, 1e-6
CHANNELS = HEADS * DIM
# What ships on an H100 is the first, elsewhere the last but one. Two residents: two segments, and two programs on a
# multiprocessor, which hide each other's waiting.
ALTERNATIVES = (
    _Config(64, 32, 4, 3),
    _Config(64, 32, 4, 2, residents=2),
    _Config(64, 64, 8, 3),
    _Config(128, 32, 8, 2),
    _Config(32, 32, 4, 3, loads_twice=True),
    _Config(32, 32, 4, 2, loads_twice=True, residents=2),
)
# Layers' states beyond the L2 cache, as in a decode step of 24 layers.
LAYERS = 24


def cases() -> list[Case]:
    """Prefill of 2,048, 8,192 and 32,768 tokens in every configuration, the passes around it, and decode.

    Bytes are those that must move: every input and output once. FLOP of prefill are those of tiles of 64 tokens without
    what slices repeat. Decode goes through the states of 24 layers in turn, one launch a call; time it in a CUDA graph
    of 24 calls.
    """
    found: list[Case] = []
    for tokens in (2048, 8192, 32768):
        q, k, v, z = (_random(tokens, HEADS, DIM) for _ in range(4))
        rows, weight, out_weight = tokens * CHANNELS * 2, _random(DIM), _random(CHANNELS)
        table = rope_table(torch.arange(tokens, device="cuda"), DIM, 10000.0)
        slopes = torch.tensor(lightning_slopes(HEADS), device="cuda")
        state = torch.zeros(HEADS, DIM, DIM, device="cuda")
        prefill = partial(lightning_prefill.lightning_prefill, q, k, v, slopes, DIM**-0.5, state)
        flops = tokens * HEADS * DIM * (4 * 64 + 4 * DIM)
        for config in ALTERNATIVES:
            name = f"lightning_prefill {tokens} {tuple(vars(config).values())}"
            found.append((name, partial(_with, config, prefill), 4 * rows, flops))
        prepare = partial(qk_norm_rope, q, k, weight, weight, EPS, table)
        found.append((f"qk_norm_rope {tokens}", prepare, 4 * rows + table.nbytes, 0))
        finish = partial(norm_gate, v.flatten(1), out_weight, z.flatten(1), EPS)
        found.append((f"norm_gate {tokens}", finish, 3 * rows, 0))
    return found + _decode_cases()


def _with(config: _Config, prefill: Callable[[], object]) -> object:
    with mock.patch.object(lightning_prefill, "_config", return_value=config):
        return prefill()


def _decode_cases() -> list[Case]:
    q, k, v = (_random(HEADS, DIM) for _ in range(3))
    weight, out_weight, gate = _random(DIM), _random(CHANNELS), _random(CHANNELS)
    table = rope_table(torch.tensor([100_000], device="cuda"), DIM, 10000.0)
    slopes = torch.tensor(lightning_slopes(HEADS), device="cuda")
    states = itertools.cycle(torch.zeros(LAYERS, HEADS, DIM, DIM, device="cuda"))
    arrived = torch.zeros(1, dtype=torch.int32, device="cuda")
    between = torch.empty(CHANNELS, device="cuda")

    def step() -> object:
        return lightning_decode.lightning_step(
            q, k, v, weight, weight, table, slopes, 0.1, next(states), out_weight, gate, EPS, arrived
        )

    def step_in_two_launches() -> object:
        lightning_decode._launch(
            q, k, v, weight, weight, table, slopes, 0.1, next(states), None, None, EPS,
            between=between, arrived=None, out=between,
        )  # fmt: skip
        return norm_gate(between[None], out_weight, gate[None], EPS)

    nbytes = 2 * HEADS * DIM * DIM * 4
    return [("lightning_step", step, nbytes, 0), ("lightning_step in two launches", step_in_two_launches, nbytes, 0)]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")
