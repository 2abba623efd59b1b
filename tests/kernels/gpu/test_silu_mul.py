"""SiLU and its product on a GPU."""

from __future__ import annotations

import pytest
import torch
from gpu.packed_matrices import error, numbers
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from torch import Tensor

from salalocal_kernels.gpu import silu_mul as gpu
from salalocal_kernels.ref import silu_mul as ref
from salalocal_kernels.ref.quantize_tokens import LARGEST


def halves(tokens: int, columns: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """As they lie in the product with a merged matrix."""
    gate, up = torch.split(3 * numbers(tokens, 2 * columns, dtype=dtype, device=device), columns, dim=1)
    return gate, up


def test_by_hand() -> None:
    gate, up = torch.tensor([[0.0, 100.0, -100.0, 1.0]]), torch.tensor([[5.0, 2.0, 2.0, 2.0]])
    found = ref.silu_mul(gate, up)
    torch.testing.assert_close(found, torch.tensor([[0.0, 200.0, 0.0, 2 / (1 + torch.e**-1)]]))


def test_kernel_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_products() -> None:
    for tokens, columns in ((0, 8), (1, 1), (3, 77), (5, 2048), (2, 5000)):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
            gate, up = halves(tokens, columns, dtype)
            for pair in ((gate, up), (gate.contiguous(), up), (gate.contiguous(), up.contiguous())):
                found, exact = gpu.silu_mul(*pair), ref.silu_mul(gate.double(), up.double())
                assert found.dtype == dtype
                assert found.is_contiguous()
                assert not found.numel() or error(found, exact) < tolerance
                wide = torch.zeros(tokens, columns + 5, dtype=dtype)
                assert torch.equal(gpu.silu_mul(*pair, wide[:, 2:-3]), found)
                assert torch.equal(wide[:, 2:-3], found)
                assert not wide[:, :2].any()
                assert not wide[:, -3:].any()


def check_large_gates() -> None:
    gate = torch.tensor([[-3e4, -200.0, 200.0, 3e4]])
    assert gpu.silu_mul(gate, torch.ones_like(gate)).tolist() == [[0, 0, 200, 3e4]]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int) -> None:
    gate, up = (torch.empty(4096, 16384, dtype=torch.bfloat16, device="meta") for _ in range(2))
    (launch,) = launches(lambda: gpu.silu_mul(gate, up))
    found = assert_fits(launch, capability)
    assert sum("ld.global.v4.b32" in line for line in found.ptx.splitlines()) == 4


def check_codes() -> None:
    for tokens, columns in ((0, 8), (1, 1), (3, 77), (5, 2048)):
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
            gate, up = halves(tokens, columns, dtype)
            (found, scales), (wanted, exact_scales) = (
                op(gate, up, torch.int8) for op in (gpu.silu_mul_codes, ref.silu_mul_codes)
            )
            torch.testing.assert_close(scales, exact_scales, rtol=tolerance, atol=0)
            # A number halfway between two codes may go either way.
            assert not found.numel() or (found.int() - wanted.int()).abs().max() <= 1
            assert not found.numel() or (found != wanted).float().mean() < 0.02


@pytest.mark.parametrize("capability", SHARED_BYTES)
@pytest.mark.parametrize("dtype", LARGEST, ids=["int8", "fp8"])
def test_codes_compile(dtype: torch.dtype, capability: int) -> None:
    if dtype != torch.int8 and capability < 89:
        pytest.skip("fp8 needs sm_89")
    gate, up = (torch.empty(4096, 16384, dtype=torch.bfloat16, device="meta") for _ in range(2))
    (launch,) = launches(lambda: gpu.silu_mul_codes(gate, up, dtype))
    assert_fits(launch, capability)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LARGEST, ids=["int8", "fp8"])
def test_codes_on_the_card(dtype: torch.dtype) -> None:
    if dtype != torch.int8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")
    for tokens, columns in ((4096, 16384), (1, 16384), (77, 768)):
        gate, up = halves(tokens, columns, torch.bfloat16, "cuda")
        exact = ref.silu_mul(gate.double(), up.double())
        codes, scales = gpu.silu_mul_codes(gate, up, dtype)
        usual, usual_scales = ref.silu_mul_codes(gate.double(), up.double(), dtype)
        allowed = 1.01 * error(usual.double() * usual_scales.double()[:, None], exact)
        assert error(codes.double() * scales.double()[:, None], exact) <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_full_size(dtype: torch.dtype) -> None:
    for tokens, columns in ((4096, 16384), (1, 16384), (77, 768)):
        gate, up = halves(tokens, columns, dtype, "cuda")
        exact = ref.silu_mul(gate.double(), up.double())
        found = gpu.silu_mul(gate, up)
        assert error(found, exact) <= max(1.01 * error(exact.to(dtype), exact), 1e-6)


@pytest.mark.gpu
def test_offsets_past_two_to_the_31() -> None:
    gate, up = halves(70_000, 16384, torch.bfloat16, "cuda")
    assert error(gpu.silu_mul(gate, up)[-3:], ref.silu_mul(gate[-3:].double(), up[-3:].double())) < 4e-3


if __name__ == "__main__":
    main(globals())
