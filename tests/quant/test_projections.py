"""Weights that multiply the same input, and packed weights in planes: the same products as one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salalocal_kernels import plane_values, quantize_tokens
from salalocal_kernels.ref import planes as planes_module
from salalocal_quant import (
    DenseWeight,
    Int4Weight,
    Int8Weight,
    NarrowWeight,
    PackedWeight,
    PlanesWeight,
    Weight,
    narrow_weight,
    together,
)
from salalocal_quant import planes_weight as module
from salalocal_quant.projections import MergedDense, MergedPlanes, Projections

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # only the name: what a GPU would be given is made here


def matrix(rows: int, seed: int, columns: int = 256) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def int4(rows: int, seed: int, zero_point: bool = False, group: int = 128) -> Int4Weight:
    return Int4Weight.quantize(matrix(rows, seed), group, torch.float64, zero_point=zero_point)


def int8(rows: int, seed: int) -> Int8Weight:
    return Int8Weight.quantize(matrix(rows, seed), 128, torch.float64)


MAKE: dict[str, Callable[[], PackedWeight]] = {
    "int4": lambda: int4(24, 1),
    "int4 with zero points": lambda: int4(24, 1, zero_point=True),
    "int8": lambda: int8(24, 1),
}


@pytest.mark.parametrize("tokens", [1, module.FEW_TOKENS, module.FEW_TOKENS + 1, 30])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_planes_multiply_as_the_file_does(
    make: Callable[[], PackedWeight], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = make()
    planes = PlanesWeight.of(packed)
    assert (planes.shape, planes.nbytes) == (packed.shape, packed.nbytes)
    x = matrix(tokens, 2).double()
    torch.testing.assert_close(planes(x), packed(x), rtol=1e-12, atol=1e-12)
    monkeypatch.setitem(module.SCRATCH_BYTES, "cpu", 7 * 256 * 8)
    torch.testing.assert_close(planes(x), packed(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_few_rows_are_rearranged_at_a_time(make: Callable[[], PackedWeight], monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make()
    whole = PlanesWeight.of(packed).planes
    monkeypatch.setattr(planes_module, "_SLICE_BYTES", 7 * 256)
    for found in (PlanesWeight.of(packed), PlanesWeight.of(packed, torch.device("cpu"))):
        assert torch.equal(found.planes.words, whole.words)
        assert torch.equal(found.planes.scales, whole.scales)
        assert (found.planes.zeros is None) == (whole.zeros is None)
    assert PlanesWeight.of(packed, torch.device("meta")).planes.device.type == "meta"


@pytest.mark.parametrize(("dtype", "worst"), [(torch.int8, 0.015), (torch.float8_e4m3fn, 0.045)], ids=["int8", "fp8"])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_many_tokens_in_eight_bits(
    make: Callable[[], PackedWeight], dtype: torch.dtype, worst: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = PlanesWeight.of(make())
    narrow = NarrowWeight.narrow(planes, dtype)
    assert narrow.planes is planes.planes
    assert narrow.nbytes == planes.nbytes + 24 * 4
    few, many = (matrix(tokens, 2).double() for tokens in (narrow_weight.MANY_TOKENS - 1, narrow_weight.MANY_TOKENS))
    assert torch.equal(narrow(few), planes(few))
    found, exact = narrow(many), planes(many)
    assert found.dtype == exact.dtype
    # What rounding is by definition, of both sides; it may take ties another way.
    codes, scales = quantize_tokens(many, dtype)
    weight, row_scales = quantize_tokens(plane_values(planes.planes, torch.float32), dtype)
    wanted = (codes.double() * scales.double()[:, None]) @ (weight.double() * row_scales.double()[:, None]).T
    usual = (wanted - exact).square().mean()
    assert (found - exact).square().mean() <= 1.1 * usual <= 1.1 * worst**2 * exact.square().mean()
    monkeypatch.setitem(module.SCRATCH_BYTES, "cpu", 7 * 256)
    torch.testing.assert_close(narrow(many), found, rtol=1e-12, atol=1e-12)
    assert narrow(many.view(2, -1, 256)).shape == (2, narrow_weight.MANY_TOKENS // 2, 24)


def test_what_shares_an_input_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [PlanesWeight.of(weight) for weight in (int8(8, 1), int4(3, 2), int4(5, 3))]
    merged = together([weights[0], *(NarrowWeight.narrow(weight, torch.int8) for weight in weights[1:])], CUDA)
    assert type(merged) is MergedPlanes
    rounded = []

    def round_and_count(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rounded.append(x.shape)
        return quantize_tokens(x, dtype)

    monkeypatch.setattr(narrow_weight, "quantize_tokens", round_and_count)
    x = matrix(narrow_weight.MANY_TOKENS, 2).double()
    products = merged(x)
    assert rounded == [x.shape]
    assert torch.equal(products[0], weights[0](x))
    for found, weight in zip(products[1:], merged.weights[1:], strict=True):
        assert torch.equal(found, weight(x))
    few = merged(x[:3])
    assert all(torch.equal(found, weight(x[:3])) for found, weight in zip(few, weights, strict=True))


def test_many_tokens_share_one_scratch_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_scratch", {})
    monkeypatch.setitem(module.SCRATCH_BYTES, "cpu", 7 * 256 * 8)
    x = matrix(9, 2).double()
    for rows in (3, 20, 12):
        PlanesWeight.of(int8(rows, rows))(x)
    (buffer,) = module._scratch.values()
    assert buffer.nbytes == 7 * 256 * 8


GROUPS: dict[str, tuple[list[Weight], type[Projections]]] = {
    "dense": ([DenseWeight(matrix(rows, rows).double()) for rows in (8, 3, 5)], MergedDense),
    "packed": ([PlanesWeight.of(weight) for weight in (int4(8, 1), int8(3, 2), int4(5, 3), int8(9, 4))], MergedPlanes),
    "too many": ([PlanesWeight.of(int4(2, seed)) for seed in range(5)], Projections),
    "zero points differ": ([PlanesWeight.of(int4(8, 1, zero_point=z)) for z in (True, False)], Projections),
    "groups differ": ([PlanesWeight.of(int4(8, 1, group=g)) for g in (64, 128)], Projections),
    "dense and packed": ([DenseWeight(matrix(4, 1).double()), PlanesWeight.of(int8(3, 2))], Projections),
}


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(("weights", "kind"), GROUPS.values(), ids=GROUPS)
def test_together_as_one_by_one(weights: list[Weight], kind: type[Projections], tokens: int) -> None:
    merged = together(weights, CUDA)
    assert type(merged) is kind
    assert sum(weight.nbytes for weight in merged.weights) == sum(weight.nbytes for weight in weights)
    x = matrix(tokens, 2).double()
    products = merged(x)
    assert len(products) == len(weights)
    for found, weight in zip(products, weights, strict=True):
        assert found.stride(-1) == 1
        torch.testing.assert_close(found, weight(x), rtol=1e-12, atol=1e-12)


def test_a_processor_multiplies_plain_matrices_one_by_one() -> None:
    weights = GROUPS["dense"][0]
    assert type(together(weights, CPU)) is Projections
    assert together(weights, CPU).weights == tuple(weights)


def test_merged_plain_matrices_are_there_once() -> None:
    merged = together(GROUPS["dense"][0], CUDA)
    assert isinstance(merged, MergedDense)
    start = merged.data.data_ptr()
    assert [weight.data.data_ptr() - start for weight in merged.weights] == [0, 8 * 256 * 8, 11 * 256 * 8]


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_gate_and_up(kind: str, tokens: int) -> None:
    weights: list[Weight] = [DenseWeight(matrix(6, 1).double()), DenseWeight(matrix(6, 2).double())]
    if kind == "packed":
        weights = [PlanesWeight.of(int4(6, 1)), PlanesWeight.of(int8(6, 2))]
    x = matrix(tokens, 2).double()
    expected = functional.silu(weights[0](x)) * weights[1](x)
    torch.testing.assert_close(together(weights, CUDA).silu_mul(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_rows_of_an_embedding_times_its_factor(dtype: torch.dtype) -> None:
    ids = torch.tensor([2, 0, 2, 5])
    values = matrix(6, 1)
    for weight in (
        DenseWeight(values.to(dtype)),
        Int8Weight.quantize(values, 128, dtype),
        Int4Weight.quantize(values, 128, dtype),
    ):
        found = weight.embed(ids, 12.0)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(found, weight.rows(ids).to(found.dtype) * 12.0)
