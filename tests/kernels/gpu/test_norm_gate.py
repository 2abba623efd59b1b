"""The Triton kernel of output norm and gate: interpreted against float64, compiled for every card, run where one is."""

from __future__ import annotations

import pytest
import torch
from numbers_of import random, strided
from triton_checks import assert_fits, assert_no_worse, compiled, failure_of, interpreted, relative_error

from salalocal_kernels.ref.norm_gate import norm_gate as reference
from salalocal_kernels.ref.rms_norm import rms_norm

pytest.importorskip("triton")

EPS = 1e-5


def inputs(tokens: int, channels: int, dtype: torch.dtype):
    return (
        0.1 * random(tokens, channels, dtype=dtype, seed=1),
        random(channels, dtype=dtype, seed=2),
        random(tokens, channels, dtype=dtype, seed=3),
        EPS,
    )


def in_float64(*arguments):
    return reference(*(x.double() if isinstance(x, torch.Tensor) else x for x in arguments))


def compare(arguments, dtype: torch.dtype, tolerance: float) -> None:
    from salalocal_kernels.gpu.norm_gate import norm_gate

    found = norm_gate(*arguments)
    assert found.dtype == reference(*arguments).dtype == dtype
    assert relative_error(found, in_float64(*arguments)) < tolerance


def check_odd_sizes() -> None:
    for tokens, channels in ((0, 8), (1, 1), (3, 5), (7, 100), (2, 1024), (2, 2000)):
        compare(inputs(tokens, channels, torch.float32), torch.float32, 1e-6)


def check_dtypes() -> None:
    compare(inputs(5, 70, torch.float16), torch.float16, 1e-3)
    x, weight, gate, eps = inputs(5, 70, torch.float16)
    compare((x.float(), weight, gate, eps), torch.float16, 1e-3)


def check_norm_and_gate_may_be_missing() -> None:
    x, weight, gate, eps = inputs(4, 33, torch.float32)
    compare((x, None, gate, eps), torch.float32, 1e-6)
    compare((x, weight, None, eps), torch.float32, 1e-6)
    compare((x, None, None, eps), torch.float32, 1e-6)
    compare((x, weight.half(), None, eps), torch.float16, 1e-3)


def check_strides() -> None:
    x, weight, gate, eps = inputs(4, 33, torch.float32)
    compare((strided(x), strided(weight), strided(gate), eps), torch.float32, 1e-6)
    x, gate = torch.cat([x, gate], dim=1).split(33, dim=1)
    compare((x, weight, gate, eps), torch.float32, 1e-6)


@interpreted(__file__)
def test_in_the_interpreter(check: str) -> None:
    assert not (failure := failure_of(__file__, check)), failure


def test_reference_is_norm_then_gate() -> None:
    x, weight, gate, eps = inputs(5, 70, torch.bfloat16)
    assert torch.equal(reference(x, weight, gate, eps), rms_norm(x, weight, eps) * torch.sigmoid(gate))


@compiled
def test_compiles(capability: tuple[int, int], dtype: torch.dtype, size: str) -> None:
    from salalocal_kernels.gpu import norm_gate as module

    channels = 4096 if size == "released" else 512
    empty = lambda *shape: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    arguments = (empty(8192, channels), empty(channels), empty(8192, channels), EPS)
    assert_fits(module, capability, lambda: module.norm_gate(*arguments))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("tokens", "channels"), [(1, 4096), (333, 4096), (1000, 512)])
def test_on_a_gpu(dtype: torch.dtype, tokens: int, channels: int) -> None:
    from salalocal_kernels.gpu.norm_gate import norm_gate

    arguments = [x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs(tokens, channels, dtype)]
    assert_no_worse("out", norm_gate(*arguments), in_float64(*arguments), reference(*arguments))


@pytest.mark.gpu
def test_offsets_past_2_to_31_on_a_gpu() -> None:
    from salalocal_kernels.gpu.norm_gate import norm_gate

    x = torch.randn((1 << 31) // 4096 + 100, 4096, dtype=torch.bfloat16, device="cuda")
    weight = torch.ones(4096, dtype=torch.bfloat16, device="cuda")
    found = norm_gate(x, weight, x, EPS)
    assert relative_error(found[-200:], in_float64(x[-200:], weight, x[-200:], EPS)) < 4e-3
