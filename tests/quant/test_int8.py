"""The 8-bit layout on literal bytes, its error, and its product against the unpacked matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salalocal_quant import Int8Weight, PackedError


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative_rms(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted.double()).square().mean() / wanted.double().square().mean()).sqrt())


def test_groups_on_literal_bytes() -> None:
    row = torch.zeros(1, 128)
    row[0, :4] = torch.tensor([127.0, -127, 1, -2])
    row[0, 64:68] = torch.tensor([-0.5, 63.5, 2, 0])
    weight = Int8Weight.quantize(row, 64, torch.float32)
    assert weight.scales.tolist() == [[1.0, 0.5]]
    assert weight.scales.view(torch.uint8).numpy().tobytes() == bytes.fromhex("803f003f")
    assert weight.qweight.numpy().tobytes() == bytes.fromhex("7f8101fe") + bytes(60) + bytes.fromhex(
        "ff7f0400"
    ) + bytes(60)
    assert set(weight.tensors()) == {"qweight", "scales"}
    assert torch.equal(weight.unpack().data, row)


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("rows", [1, 7, 301])
def test_error_is_bounded(group_size: int, rows: int) -> None:
    matrix = random_matrix(rows, 384)
    weight = Int8Weight.quantize(matrix, group_size, torch.float32)
    assert weight.group_size == group_size
    few_groups_vary = 1.3 if rows < 10 else 1.0
    assert relative_rms(weight.unpack().data, matrix) < (0.0065 if group_size == 64 else 0.0070) * few_groups_vary


def test_groups_beat_one_scale_per_row_where_a_row_has_an_outlier() -> None:
    matrix = random_matrix(64, 1024)
    matrix[:, 0] = 20.0
    scale = matrix.abs().amax(-1, keepdim=True) / 127
    per_row = torch.round(matrix / scale) * scale
    found = Int8Weight.quantize(matrix, 128, torch.float32).unpack().data
    assert relative_rms(found, matrix) < 0.5 * relative_rms(per_row, matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_product_rows_and_unpacked_matrix_agree_exactly(dtype: torch.dtype) -> None:
    weight = Int8Weight.quantize(random_matrix(77, 256), 64, dtype)
    dense, x = weight.unpack(), random_matrix(3, 256, seed=5).to(dtype)
    assert torch.equal(weight(x), dense(x))
    index = torch.tensor([76, 0, 5, 5])
    assert torch.equal(weight.rows(index), dense.rows(index))
    assert weight.rows(index).dtype == dtype
    assert weight.nbytes == 77 * (256 + 4 * 2)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e38, -2.5], ids=str)
def test_constant_groups_of_any_size_come_back(value: float) -> None:
    matrix = torch.full((2, 64), value)
    assert torch.allclose(Int8Weight.quantize(matrix, 64, torch.float32).unpack().data, matrix, rtol=2**-8, atol=1e-38)


def test_bad_tensors_are_refused() -> None:
    codes, scales = torch.zeros(4, 128, dtype=torch.int8), torch.ones(4, 1, dtype=torch.bfloat16)
    Int8Weight(codes, scales, None, torch.float32).check_values()
    with pytest.raises(PackedError, match=r"qweight is int32 \[4, 128\]; int8"):
        Int8Weight(codes.int(), scales, None, torch.float32)
    with pytest.raises(PackedError, match=r"scales are bfloat16 \[3, 1\]; \[4, 1\]"):
        Int8Weight(codes, scales[:3], None, torch.float32)
    codes[1, 1] = -128
    with pytest.raises(PackedError, match="-128"):
        Int8Weight(codes, scales, None, torch.float32).check_values()
    with pytest.raises(PackedError, match="NaN"):
        Int8Weight(codes * 0, scales * float("nan"), None, torch.float32).check_values()
    with pytest.raises(PackedError, match="NaN or Inf"):
        Int8Weight.quantize(torch.full((1, 64), float("nan")), 64, torch.float32)
