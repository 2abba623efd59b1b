"""Packed matrices to plain numbers on a GPU, bit for bit."""

from __future__ import annotations

import pytest
import torch
from gpu.packed_matrices import FORMATS, packed
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import unpack_planes as gpu
from salalocal_kernels.ref import planes as ref
from salalocal_kernels.ref.quantize_tokens import LARGEST


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_values() -> None:
    for form in FORMATS:
        for rows, columns in ((5, 128), (1, 768), (0, 128)):
            matrix = packed(rows, columns, form)
            for dtype in (torch.float32, torch.float16):
                assert torch.equal(gpu.plane_values(matrix, dtype), ref.plane_values(matrix, dtype)), form
        out = torch.full((5, 2200), float("nan"))
        gpu.plane_values(matrix := packed(5, 2176, form), torch.float32, out[:, 11:2187])
        assert torch.equal(out[:, 11:2187], ref.plane_values(matrix, torch.float32))
        assert out[:, 2187:].isnan().all()


def check_steps() -> None:
    for form, (bits, _, _) in FORMATS.items():
        matrix = packed(6, 384, form)
        matrix.words[:, 0] |= 0x01010101 if bits == 8 else 0  # code 0 is step -128, which no file holds
        assert torch.equal(gpu.plane_steps(matrix, torch.int8).short(), ref.plane_steps(matrix))
        if bits == 4:
            found = gpu.plane_steps(matrix, torch.float8_e4m3fn)
            assert torch.equal(found.float(), ref.plane_steps(matrix).float())


def row_scales(matrix: ref.Planes, dtype: torch.dtype) -> torch.Tensor:
    return ref.plane_values(matrix, torch.float32).abs().amax(1) / LARGEST[dtype]


def test_codes_by_hand() -> None:
    """Two groups of one row, 1 and -8 steps of 2 and of 127/4, and a row of zeros."""
    words = torch.zeros(2, 16, dtype=torch.int64)
    words[0], words[1] = 0x99999999, 0x88888888
    words[0, 8:] = 0
    matrix = ref.Planes(words.to(torch.int32), torch.tensor([[2.0, 31.75], [1.0, 1.0]]).bfloat16(), None, 4, 64)
    scales = torch.tensor([2.0, 0.0])
    codes = ref.plane_codes(matrix, scales, torch.int8)
    assert codes[0, :64].unique().tolist() == [1]
    assert codes[0, 64:].unique().tolist() == [-127]
    assert codes[1].unique().tolist() == [0]
    assert ref.plane_codes(matrix, scales / 4, torch.float8_e4m3fn)[0, [0, 64]].float().tolist() == [4, -448]


def check_codes() -> None:
    for form in FORMATS:
        matrix = packed(6, 384, form)
        matrix.scales[2] = 0
        for dtype in LARGEST:
            scales = row_scales(matrix, dtype)
            found, wanted = gpu.plane_codes(matrix, scales, dtype), ref.plane_codes(matrix, scales, dtype)
            off = (found.float() - wanted.float()).abs()
            if dtype == torch.int8:
                assert off.max() == 0
            else:
                # The interpreter rounds fp8 another way (test_scaled_linear.py); the card is held to the definition.
                sizes = wanted.float().abs()
                is_told = (torch.frexp(sizes).mantissa > 0.5) & (sizes > 2**-6)
                assert (off[is_told] <= sizes[is_told] / 8).all()
            assert (found[2].float() == 0).all()


@pytest.mark.parametrize("form", ["int4-128", "int4-64-zeros", "int8-128"])
@pytest.mark.parametrize("dtype", LARGEST, ids=["int8", "fp8"])
def test_codes_compile(form: str, dtype: torch.dtype) -> None:
    matrix = packed(4096, 16384, form, "meta")
    scales = torch.empty(4096, device="meta")
    (launch,) = launches(lambda: gpu.plane_codes(matrix, scales, dtype))
    for capability in (80, 86, 90) if dtype == torch.int8 else (89, 90):
        assert_fits(launch, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LARGEST, ids=["int8", "fp8"])
@pytest.mark.parametrize("form", FORMATS)
def test_codes_on_the_card(form: str, dtype: torch.dtype) -> None:
    if dtype != torch.int8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    matrix = packed(4096, 768, form, "cuda")
    scales = row_scales(matrix, dtype)
    found, wanted = gpu.plane_codes(matrix, scales, dtype), ref.plane_codes(matrix, scales, dtype)
    assert torch.equal(found.float(), wanted.float())


@pytest.mark.parametrize("form", ["int4-128", "int4-64-zeros", "int8-128"])
def test_compiles_for_every_card(form: str) -> None:
    matrix = packed(4096, 16384, form, "meta")
    (values,) = launches(lambda: gpu.plane_values(matrix, torch.bfloat16))
    (steps,) = launches(lambda: gpu.plane_steps(matrix, torch.int8))
    for capability in SHARED_BYTES if form == "int4-128" else (86, 90):
        found = assert_fits(values, capability)
        assert all(".v4.b32" in line for line in found.ptx.splitlines() if "st.global" in line)
    assert_fits(steps, 86)
    if form == "int4-128":
        (bytes_,) = launches(lambda: gpu.plane_steps(matrix, torch.float8_e4m3fn))
        assert_fits(bytes_, 89)


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(4096, 16384), (73448, 4096), (512, 768)], ids=str)
def test_full_size(shape: tuple[int, int], form: str) -> None:
    matrix = packed(*shape, form, "cuda")
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(gpu.plane_values(matrix, dtype), ref.plane_values(matrix, dtype))
    assert torch.equal(gpu.plane_steps(matrix, torch.int8), ref.plane_steps(matrix).to(torch.int8))


@pytest.mark.gpu
def test_offsets_past_two_to_the_31() -> None:
    matrix = packed(135_000, 16384, "int4-128", "cuda")
    found = gpu.plane_values(matrix, torch.bfloat16)
    tail = ref.Planes(matrix.words[-3:], matrix.scales[-3:], None, 4, 128)
    assert torch.equal(found[-3:], ref.plane_values(tail, torch.bfloat16))


if __name__ == "__main__":
    main(globals())
