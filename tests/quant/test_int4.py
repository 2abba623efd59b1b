"""The 4-bit layout on literal bytes, its rounding held to brute force, and its product to the unpacked matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salalocal_quant import Int4Weight, PackedError, pack_int4, unpack_int4
from salalocal_quant import packed as packed_module


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative_rms(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted.double()).square().mean() / wanted.double().square().mean()).sqrt())


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_words_hold_eight_codes_in_natural_order() -> None:
    codes = torch.tensor(
        [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [15, *[0] * 14, 1]], dtype=torch.uint8
    )
    words = pack_int4(codes)
    assert words.dtype == torch.int32
    assert [[word & 0xFFFFFFFF for word in row] for row in words.tolist()] == [
        [0x76543210, 0xFEDCBA98],
        [0x0000000F, 0x10000000],
    ]
    assert raw(words) == bytes.fromhex("1032547698badcfe0f00000000000010")
    assert torch.equal(unpack_int4(words), codes)


def test_element_k_stands_in_bits_4_k_mod_8_of_word_k_div_8() -> None:
    codes = torch.randint(0, 16, (3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    words = pack_int4(codes).tolist()
    for row in range(3):
        for k in range(64):
            assert (words[row][k // 8] >> (4 * (k % 8))) & 15 == codes[row, k]


def test_symmetric_groups_on_literal_bytes() -> None:
    """A row whose second group has scale 0.5 and its own pattern; the largest value takes the lowest code."""
    row = torch.zeros(1, 128)
    row[0, :8] = torch.tensor([-8.0, -7, -1, 0, 1, 2, 3, 7])
    row[0, 64:72] = torch.tensor([4.0, -3.5, 0, 0.5, 1, 0, 0, -2])
    weight = Int4Weight.quantize(row, 64, torch.float32)
    tensors = weight.tensors()
    assert set(tensors) == {"qweight", "scales"}
    assert tensors["scales"].tolist() == [[1.0, -0.5]]
    assert raw(tensors["scales"]) == bytes.fromhex("803f00bf")
    assert raw(tensors["qweight"]) == (
        bytes.fromhex("1087a9fb") + b"\x88" * 28 + bytes.fromhex("f07886c8") + b"\x88" * 28
    )
    assert torch.equal(weight.unpack().data, row)


def test_zero_point_groups_on_literal_bytes() -> None:
    row = torch.full((1, 64), 2.0)
    row[0, :8] = torch.tensor([-1.0, 0, 0.5, 6.5, 6, 1, -0.5, 3])
    weight = Int4Weight.quantize(row, 64, torch.float32, zero_point=True)
    tensors = weight.tensors()
    assert tensors["scales"].tolist() == [[0.5]]
    assert tensors["zeros"].tolist() == [[2]]
    assert raw(tensors["zeros"]) == b"\x02"
    assert raw(tensors["qweight"]) == bytes.fromhex("20f34e81") + b"\x66" * 28
    assert torch.equal(weight.unpack().data, row)


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize("rows", [1, 7, 301])
def test_error_is_bounded(zero_point: bool, group_size: int, rows: int) -> None:
    """A normal matrix keeps 10 % rms error (1/16 of the range, clipped), and no element is off by more than a clip."""
    matrix = random_matrix(rows, 384)
    weight = Int4Weight.quantize(matrix, group_size, torch.float32, zero_point=zero_point)
    assert weight.shape == (rows, 384)
    assert weight.group_size == group_size
    found = weight.unpack().data
    few_groups_vary = 1.3 if rows < 10 else 1.0
    assert relative_rms(found, matrix) < (0.095 if group_size == 64 else 0.105) * few_groups_vary
    peak = matrix.view(rows, -1, group_size).abs().amax(-1, keepdim=True)
    assert ((found - matrix).view(rows, -1, group_size).abs() <= 0.5 * peak).all()
    error, norm = weight.squared_error(matrix)
    assert (error / norm) ** 0.5 == pytest.approx(relative_rms(found, matrix), rel=1e-6)


def test_clipping_and_the_sign_of_the_scale_beat_plain_rounding() -> None:
    matrix = random_matrix(256, 1024)
    groups = matrix.view(256, -1, 128)
    scale = groups.abs().amax(-1, keepdim=True) / 7
    plain = (torch.round(groups / scale).clamp(-8, 7) * scale).view_as(matrix)
    found = Int4Weight.quantize(matrix, 128, torch.float32).unpack().data
    assert relative_rms(found, matrix) < 0.85 * relative_rms(plain, matrix)


def test_zero_point_is_better_on_lopsided_groups() -> None:
    matrix = random_matrix(64, 512).abs() + 0.5
    symmetric = Int4Weight.quantize(matrix, 128, torch.float32)
    shifted = Int4Weight.quantize(matrix, 128, torch.float32, zero_point=True)
    assert shifted.squared_error(matrix)[0] < 0.5 * symmetric.squared_error(matrix)[0]


def test_codes_are_the_nearest_of_their_scale() -> None:
    matrix = random_matrix(5, 128, seed=3)
    weight = Int4Weight.quantize(matrix, 64, torch.float32)
    levels = torch.arange(-8, 8)[:, None, None, None] * weight.scales.float()[..., None]
    groups = matrix.view(5, 2, 64)
    nearest = (levels - groups).abs().amin(0)
    assert torch.allclose((weight.unpack().data.view(5, 2, 64) - groups).abs(), nearest, atol=1e-6)


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 3e37, -2.5], ids=str)
def test_constant_groups_of_any_size_come_back(zero_point: bool, value: float) -> None:
    matrix = torch.full((2, 64), value)
    found = Int4Weight.quantize(matrix, 64, torch.float32, zero_point=zero_point).unpack().data
    assert torch.allclose(found, matrix, rtol=2**-8, atol=1e-40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
def test_product_rows_and_unpacked_matrix_agree_exactly(dtype: torch.dtype, zero_point: bool) -> None:
    matrix = random_matrix(77, 256)
    weight = Int4Weight.quantize(matrix, 128, dtype, zero_point=zero_point)
    dense = weight.unpack()
    assert dense.data.dtype == dtype
    x = random_matrix(3, 256, seed=5).to(dtype)
    assert torch.equal(weight(x), dense(x))
    assert torch.equal(weight(x[0]), dense(x[0]))
    index = torch.tensor([76, 0, 5, 5])
    assert torch.equal(weight.rows(index), dense.rows(index))
    exact = Int4Weight(weight.qweight, weight.scales, weight.zeros, torch.float64).unpack().data
    assert torch.equal(dense.data, exact.to(dtype)), "one rounding, to the dtype"


def test_slices_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = random_matrix(33, 128), random_matrix(4, 128, seed=1).double()
    weight = Int4Weight.quantize(matrix, 64, torch.float64)
    whole, product, error = weight.unpack().data, weight(x), weight.squared_error(matrix)
    monkeypatch.setitem(packed_module.SCRATCH_BYTES, "cpu", 5 * 128 * 11)
    assert torch.equal(weight.unpack().data, whole)
    assert torch.allclose(weight(x), product, rtol=1e-12, atol=1e-12)
    assert weight.squared_error(matrix) == pytest.approx(error)


def test_bytes_in_memory() -> None:
    matrix = random_matrix(16, 256)
    assert Int4Weight.quantize(matrix, 128, torch.float32).nbytes == 16 * (128 + 2 * 2)
    assert Int4Weight.quantize(matrix, 64, torch.float32, zero_point=True).nbytes == 16 * (128 + 4 * 2 + 4)


def test_bfloat16_and_strided_input_give_the_same_codes() -> None:
    matrix = random_matrix(9, 128).bfloat16()
    wanted = Int4Weight.quantize(matrix.float(), 64, torch.float32)
    for same in (matrix, matrix.double(), matrix.t().contiguous().t()):
        found = Int4Weight.quantize(same, 64, torch.float32)
        assert torch.equal(found.qweight, wanted.qweight)
        assert torch.equal(found.scales, wanted.scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
def test_matrices_with_nan_or_inf_are_refused(bad: float, zero_point: bool) -> None:
    matrix = random_matrix(3, 64)
    matrix[2, 63] = bad
    with pytest.raises(PackedError, match="NaN or Inf"):
        Int4Weight.quantize(matrix, 64, torch.float32, zero_point=zero_point)


def test_rows_must_divide_into_groups() -> None:
    with pytest.raises(PackedError, match=r"192 values are no multiple of the group of 128"):
        Int4Weight.quantize(random_matrix(2, 192), 128, torch.float32)


WORDS = torch.zeros(4, 16, dtype=torch.int32)
SCALES = torch.ones(4, 2, dtype=torch.bfloat16)
ZEROS = torch.zeros(4, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("words", "scales", "zeros", "said"),
    [
        (WORDS.to(torch.int8), SCALES, None, r"qweight is int8 \[4, 16\]; int32"),
        (WORDS[0], SCALES, None, r"qweight is int32 \[16\]"),
        (WORDS, SCALES.float(), None, r"scales are float32 \[4, 2\]; bfloat16"),
        (WORDS, SCALES[:, :0], None, r"scales are bfloat16 \[4, 0\]"),
        (WORDS, torch.ones(4, 4, dtype=torch.bfloat16), None, r"groups of 64 or 128 of 128 columns"),
        (WORDS, SCALES[:3], None, r"scales are bfloat16 \[3, 2\]; \[4, 2\]"),
        (WORDS, SCALES, ZEROS[:, :1], r"zeros are uint8 \[4, 1\]; \[4, 2\]"),
        (WORDS, SCALES, ZEROS.to(torch.int8), r"zeros are int8 \[4, 2\]; uint8"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(words: Tensor, scales: Tensor, zeros: Tensor | None, said: str) -> None:
    with pytest.raises(PackedError, match=said):
        Int4Weight(words, scales, zeros, torch.float32)


@pytest.mark.parametrize(
    ("scale", "zero", "said"),
    [(float("nan"), 0, "scales"), (float("inf"), 0, "scales"), (3e38, 0, "scales"), (1.0, 16, "zeros")],
)
def test_damaged_values_are_found(scale: float, zero: int, said: str) -> None:
    scales, zeros = SCALES.clone(), ZEROS.clone()
    Int4Weight(WORDS, scales, zeros, torch.float32).check_values()
    scales[3, 1], zeros[3, 1] = scale, zero
    with pytest.raises(PackedError, match=said):
        Int4Weight(WORDS, scales, zeros, torch.float32).check_values()
