"""The Triton kernel of lightning decode, bare and fused: interpreted against float64, compiled for every card, run."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from triton_checks import assert_fits, assert_no_worse, compiled, failure_of, interpreted, relative_error

from salalocal_kernels.ref.lightning import lightning_decode as decode_reference
from salalocal_kernels.ref.lightning import lightning_slopes
from salalocal_kernels.ref.lightning_step import lightning_step as step_reference
from salalocal_kernels.ref.norm_gate import norm_gate
from salalocal_kernels.ref.qk_norm_rope import qk_norm_rope
from salalocal_kernels.ref.rope import rope_table

pytest.importorskip("triton")

SIZES = {"released": (32, 32, 128), "embedded": (8, 8, 64)}
EPS, THETA, SCALE = 1e-5, 10000.0, 0.3


def bare_inputs(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0):
    return (
        random(heads, dim, dtype=dtype, seed=seed + 1),
        random(kv_heads, dim, dtype=dtype, seed=seed + 2),
        random(kv_heads, dim, dtype=dtype, seed=seed + 3),
        torch.tensor(lightning_slopes(heads), dtype=torch.float32),
        SCALE,
        random(heads, dim, dim, dtype=torch.float32, seed=seed + 4),
    )


def fused_inputs(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int = 0, position: int = 1000):
    q, k, v, slopes, scale, state = bare_inputs(heads, kv_heads, dim, dtype, seed)
    weights = [random(dim, dtype=dtype, seed=5), random(dim, dtype=dtype, seed=6)]
    return [
        3 * q, k, v, *weights, rope_table(torch.tensor([position]), dim, THETA), slopes, scale, state,
        random(heads * dim, dtype=dtype, seed=7), random(heads * dim, dtype=dtype, seed=seed + 8), EPS,
    ]  # fmt: skip


def on(device: str, arguments):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in arguments]


def in_float64(reference, arguments):
    """Output and new state; the state given stays."""
    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]
    place = 5 if reference is decode_reference else 8
    wide[place] = wide[place].clone()
    return reference(*wide), wide[place]


def compare_bare(arguments, tolerance: float) -> None:
    from salalocal_kernels.gpu.lightning_decode import lightning_decode

    expected, expected_state = in_float64(decode_reference, arguments)
    found = lightning_decode(*arguments)
    assert found.dtype == arguments[0].dtype
    assert relative_error(found, expected) < tolerance
    assert relative_error(arguments[5], expected_state) < 1e-6


def compare_fused(arguments, tolerance: float, state_tolerance: float = 1e-6) -> None:
    from salalocal_kernels.gpu.lightning_decode import lightning_step

    arrived = torch.zeros(1, dtype=torch.int32)
    expected, expected_state = in_float64(step_reference, arguments)
    found = lightning_step(*arguments, arrived)
    assert found.dtype == arguments[0].dtype
    assert relative_error(found, expected) < tolerance
    assert relative_error(arguments[8], expected_state) < state_tolerance
    assert arrived.item() == 0


def check_bare() -> None:
    for heads, kv_heads, dim in ((1, 1, 2), (3, 1, 16), (6, 2, 64)):
        compare_bare(bare_inputs(heads, kv_heads, dim, torch.float32), 1e-6)
    compare_bare(bare_inputs(4, 4, 32, torch.float16), 1e-3)


def check_bare_with_strides() -> None:
    q, k, v, *others = bare_inputs(6, 2, 16, torch.float32)
    compare_bare((strided(q), strided(k), strided(v), *others), 1e-6)


def check_decay_keeps_its_digits() -> None:
    q, k, v, _, scale, state = bare_inputs(8, 8, 16, torch.float32)
    slopes = torch.tensor([0.0, 1e-7, 2**-8, 0.1, 0.299, 0.301, 0.84, 50.0])
    k = k * 0
    expected = torch.expm1(-slopes.double())[:, None, None] * state.double()
    from salalocal_kernels.gpu.lightning_decode import lightning_decode

    before = state.double()
    lightning_decode(q, k, v, slopes, scale, state)
    # Half a unit in the last place of the result, and as much of the change.
    off = (state.double() - before - expected).abs()
    assert (off <= 1.2e-7 * (before.abs() + expected.abs())).all()
    for head in (1, 2, 3):
        # 100 steps do not wander: the decay itself, not its rounding, adds up.
        assert abs((state[head].double() - before[head] - expected[head]).mean()) < 2e-8


def check_fused() -> None:
    for heads, kv_heads, dim in ((1, 1, 2), (3, 1, 16), (6, 2, 64)):
        compare_fused(fused_inputs(heads, kv_heads, dim, torch.float32), 1e-6)
    compare_fused(fused_inputs(4, 4, 32, torch.float16), 1e-3)


def check_every_part_may_be_missing() -> None:
    for missing in (3, 4, 5, 9, 10):
        arguments = fused_inputs(3, 3, 16, torch.float32)
        arguments[missing] = None
        compare_fused(arguments, 1e-6)


def check_another_state_is_written() -> None:
    from salalocal_kernels.gpu.lightning_decode import lightning_step

    arrived = torch.zeros(1, dtype=torch.int32)
    arguments = fused_inputs(6, 2, 16, torch.float32)
    before, new_state = arguments[8].clone(), torch.full_like(arguments[8], float("nan"))
    expected, expected_state = in_float64(step_reference, arguments)
    for step, more in ((lightning_step, (arrived,)), (step_reference, ())):
        assert relative_error(step(*arguments, *more, new_state=new_state), expected) < 1e-6
        assert relative_error(new_state, expected_state) < 1e-6
        assert torch.equal(arguments[8], before)
        new_state.fill_(float("nan"))


def check_steps_in_a_row_share_the_counter() -> None:
    from salalocal_kernels.gpu.lightning_decode import lightning_step

    arrived = torch.zeros(1, dtype=torch.int32)
    state = fused_inputs(4, 2, 16, torch.float32)[8]
    wide = state.double()
    for step in range(4):
        arguments = fused_inputs(4, 2, 16, torch.float32, seed=10 * step, position=step)
        arguments[8] = wide
        expected, wide = in_float64(step_reference, arguments)
        arguments[8] = state
        assert relative_error(lightning_step(*arguments, arrived), expected) < 1e-6
    assert relative_error(state, wide) < 1e-6


@interpreted(__file__)
def test_in_the_interpreter(check: str) -> None:
    assert not (failure := failure_of(__file__, check)), failure


def test_reference_is_the_separate_operations() -> None:
    q, k, v, q_weight, k_weight, table, slopes, scale, state, out_weight, gate, eps = fused_inputs(
        6, 2, 16, torch.bfloat16
    )
    q_ready, k_ready = qk_norm_rope(q[None], k[None], q_weight, k_weight, eps, table)
    expected_state = state.clone()
    out = decode_reference(q_ready[0], k_ready[0], v, slopes, scale, expected_state)
    expected = norm_gate(out.reshape(1, -1), out_weight, gate[None], eps)[0]
    found = step_reference(q, k, v, q_weight, k_weight, table, slopes, scale, state, out_weight, gate, eps)
    assert torch.equal(found, expected)
    assert torch.equal(state, expected_state)


@compiled
def test_compiles(capability: tuple[int, int], dtype: torch.dtype, size: str) -> None:
    from salalocal_kernels.gpu import lightning_decode as module

    bare, fused = on("meta", bare_inputs(*SIZES[size], dtype)), on("meta", fused_inputs(*SIZES[size], dtype))
    arrived = torch.empty(1, dtype=torch.int32, device="meta")
    assert_fits(module, capability, lambda: module.lightning_decode(*bare))
    assert_fits(module, capability, lambda: module.lightning_step(*fused, arrived))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SIZES.values(), (32, 2, 128)], ids=[*SIZES, "grouped"])
def test_on_a_gpu(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    from salalocal_kernels.gpu.lightning_decode import lightning_decode, lightning_step

    arrived = torch.zeros(1, dtype=torch.int32, device="cuda")
    for kernel, reference, make, more in (
        (lightning_decode, decode_reference, bare_inputs, ()),
        (lightning_step, step_reference, fused_inputs, (arrived,)),
    ):
        arguments, same = on("cuda", make(*shape, dtype)), on("cuda", make(*shape, dtype))
        place = 5 if kernel is lightning_decode else 8
        expected, expected_state = in_float64(reference, arguments)
        found = kernel(*arguments, *more)
        assert_no_worse("out", found, expected, reference(*same))
        assert_no_worse("state", arguments[place], expected_state, same[place])
    assert arrived.item() == 0


@pytest.mark.gpu
def test_the_last_program_sees_all_others_in_a_graph_on_a_gpu() -> None:
    """Many replays, each with other inputs, against the bare kernel and the norm after it."""
    from salalocal_kernels.gpu.lightning_decode import lightning_step

    arguments = on("cuda", fused_inputs(32, 32, 128, torch.float32))
    arrived = torch.zeros(1, dtype=torch.int32, device="cuda")
    lightning_step(*arguments, arrived)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [lightning_step(*arguments, arrived) for _ in range(4)]
    for replay in range(500):
        arguments[0].copy_(torch.randn_like(arguments[0]))
        arguments[8].copy_(torch.randn_like(arguments[8]))
        mine = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        graph.replay()
        for number, out in enumerate(outs):
            expected = step_reference(*mine)
            assert relative_error(out, expected) < 1e-5, f"replay {replay}, launch {number}"
    assert arrived.item() == 0
