"""The Triton kernel of q/k norm and RoPE: interpreted against float64, compiled for every card, run where one is."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from triton_checks import assert_fits, assert_no_worse, compiled, failure_of, interpreted, relative_error

from salalocal_kernels.ref.qk_norm_rope import qk_norm_rope as reference
from salalocal_kernels.ref.rms_norm import rms_norm
from salalocal_kernels.ref.rope import rope, rope_table

pytest.importorskip("triton")

SIZES = {"released": (32, 32, 128), "embedded": (8, 8, 64)}
EPS, THETA = 1e-5, 10000.0


def inputs(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, first_position: int = 7):
    table = rope_table(torch.arange(first_position, first_position + tokens), dim, THETA)
    return (
        3 * random(tokens, heads, dim, dtype=dtype, seed=1),
        random(tokens, kv_heads, dim, dtype=dtype, seed=2),
        random(dim, dtype=dtype, seed=3),
        random(dim, dtype=dtype, seed=4),
        EPS,
        table,
    )


def in_float64(*arguments):
    return reference(*(x.double() if isinstance(x, torch.Tensor) else x for x in arguments))


def compare(arguments, tolerance: float) -> None:
    from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope

    new = qk_norm_rope(*arguments)
    for found, expected in zip(new, in_float64(*arguments), strict=True):
        assert found.dtype == arguments[0].dtype
        assert relative_error(found, expected) < tolerance
    if arguments[0].stride(-1) == arguments[1].stride(-1) == 1:
        q, k = ((2 * x).mul_(0.5) for x in arguments[:2])
        same = qk_norm_rope(q, k, *arguments[2:], True)
        assert same[0] is q
        assert same[1] is k
        assert all(torch.equal(*pair) for pair in zip(same, new, strict=True))


def check_odd_sizes() -> None:
    for tokens, heads, kv_heads, dim in ((0, 2, 2, 8), (1, 1, 1, 2), (5, 3, 2, 6), (3, 7, 1, 16), (2, 70, 33, 64)):
        compare(inputs(tokens, heads, kv_heads, dim, torch.float32), 1e-6)


def check_float16() -> None:
    compare(inputs(4, 3, 3, 16, torch.float16), 1e-3)


def check_norms_and_rope_may_be_missing() -> None:
    q, k, q_weight, k_weight, eps, table = inputs(4, 3, 2, 16, torch.float32)
    compare((q, k, None, None, eps, table), 1e-6)
    compare((q, k, q_weight, None, eps, table), 1e-6)
    compare((q, k, q_weight, k_weight, eps, None), 1e-6)


def check_strides() -> None:
    q, k, *others = inputs(4, 3, 2, 16, torch.float32)
    compare((strided(q), strided(k), *others), 1e-6)
    q, k = torch.cat([q, k], dim=1).split([3, 2], dim=1)
    compare((q, k, *others), 1e-6)


@interpreted(__file__)
def test_in_the_interpreter(check: str) -> None:
    assert not (failure := failure_of(__file__, check)), failure


def test_reference_is_norm_then_rope() -> None:
    q, k, q_weight, k_weight, eps, table = inputs(5, 3, 2, 16, torch.bfloat16)
    found_q, found_k = reference(q, k, q_weight, k_weight, eps, table)
    assert torch.equal(found_q, rope(rms_norm(q, q_weight, eps), 7, THETA))
    assert torch.equal(found_k, rope(rms_norm(k, k_weight, eps), 7, THETA))


@compiled
def test_compiles(capability: tuple[int, int], dtype: torch.dtype, size: str) -> None:
    from salalocal_kernels.gpu import qk_norm_rope as module

    heads, kv_heads, dim = SIZES[size]
    empty = lambda *shape, dtype=dtype: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    arguments = (
        empty(8192, heads, dim), empty(8192, kv_heads, dim), empty(dim), empty(dim), EPS,
        empty(8192, dim, dtype=torch.float32),
    )  # fmt: skip
    assert_fits(module, capability, lambda: module.qk_norm_rope(*arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [*SIZES.values(), (32, 2, 128)], ids=[*SIZES, "grouped"])
@pytest.mark.parametrize("tokens", [1, 333])
def test_on_a_gpu(dtype: torch.dtype, shape: tuple[int, int, int], tokens: int) -> None:
    from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope

    arguments = [x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs(tokens, *shape, dtype, 1_000_000)]
    found, expected, same = qk_norm_rope(*arguments), in_float64(*arguments), reference(*arguments)
    for name, *each in zip("qk", found, expected, same, strict=True):
        assert_no_worse(name, *each)


@pytest.mark.gpu
def test_offsets_past_2_to_31_on_a_gpu() -> None:
    from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope

    tokens = (1 << 31) // 4096 + 100
    q = torch.randn(tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(128, dtype=torch.bfloat16, device="cuda")
    table = rope_table(torch.arange(tokens, device="cuda"), 128, THETA)
    found, _ = qk_norm_rope(q, q[:, :1], weight, weight, EPS, table)
    expected, _ = in_float64(q[-200:], q[-200:, :1], weight, weight, EPS, table[-200:])
    assert relative_error(found[-200:], expected) < 4e-3
