"""A packed matrix times many tokens in 8 bits, through the kernels: rounding, codes, product."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from gpu.packed_matrices import error, numbers, packed
from gpu.triton_gate import main, run_interpreted

from salalocal_kernels import dispatch, watch
from salalocal_kernels.gpu import scaled_linear
from salalocal_kernels.ref.planes import plane_values
from salalocal_quant import NarrowWeight, PlanesWeight, narrow_weight

FP8 = torch.float8_e4m3fn


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_kernels_and_definitions_agree() -> None:
    small = scaled_linear.Tile(tokens=32, channels=16, columns=64, warps=4, stages=1)
    x = numbers(narrow_weight.MANY_TOKENS + 3, 256)
    for form in ("int4-128", "int4-64-zeros", "int8-128"):
        weight = NarrowWeight.narrow(PlanesWeight(packed(24, 256, form)), torch.int8)
        wanted = weight(x)
        with (
            mock.patch.object(dispatch, "_device_type", return_value="cuda"),
            mock.patch.object(scaled_linear, "_tile", return_value=small),
            watch() as served,
        ):
            found = weight(x)
        assert set(served.modules) == {"quantize_tokens", "plane_codes", "scaled_linear"}
        assert not served.fallbacks
        # A number halfway between two codes may go either way.
        assert error(found, wanted.double()) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "worst"), [(torch.int8, 0.02), (FP8, 0.05)], ids=["int8", "fp8"])
@pytest.mark.parametrize("form", ["int4-128", "int4-64-zeros", "int8-128"])
@pytest.mark.parametrize("shape", [(16384, 4096), (4096, 16384), (256, 4096)], ids=str)
def test_full_size(shape: tuple[int, int], form: str, dtype: torch.dtype, worst: float) -> None:
    if dtype == FP8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    matrix = packed(*shape, form, "cuda")
    # Of one size and either sign, as those of trained weights nearly are.
    matrix.scales.copy_(matrix.scales.sign() + (matrix.scales == 0))
    weight = NarrowWeight.narrow(PlanesWeight(matrix), dtype)
    x = numbers(1000, shape[1], dtype=torch.bfloat16, device="cuda")
    with watch() as served:
        found = weight(x)
    assert not served.fallbacks
    assert error(found, x.double() @ plane_values(matrix, torch.float64).T) < worst


if __name__ == "__main__":
    main(globals())
