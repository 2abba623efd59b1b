"""Packed matrices to plain numbers on a GPU, bit for bit."""

from __future__ import annotations

import pytest
import torch
from gpu.packed_matrices import FORMATS, packed
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import unpack_planes as gpu
from salalocal_kernels.ref import planes as ref


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


@pytest.mark.parametrize("form", ["int4-128", "int4-64-zeros", "int8-128"])
def test_compiles_for_every_card(form: str) -> None:
    matrix = packed(4096, 16384, form, "meta")
    (values,) = launches(lambda: gpu.plane_values(matrix, torch.bfloat16))
    (steps,) = launches(lambda: gpu.plane_steps(matrix, torch.int8))
    for capability in SHARED_BYTES if form == "int4-128" else (86, 90):
        found = assert_fits(values, capability)
        assert all(".v2.b32" in line for line in found.ptx.splitlines() if "st.global" in line)
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
