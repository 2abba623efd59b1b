"""Norm, and addition with norm, on a GPU."""

from __future__ import annotations

import pytest
import torch
from gpu.packed_matrices import error, numbers
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import rms_norm as gpu
from salalocal_kernels.ref import add_rms_norm as ref_add
from salalocal_kernels.ref import rms_norm as ref


def test_addition_by_hand() -> None:
    x, branch = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 4.0]], dtype=torch.bfloat16)
    out = ref_add.add_rms_norm(x, branch, 0.5, torch.tensor([2.0, 10.0]), eps=0.0)
    # x = 3, 4: mean square 12.5
    assert x.tolist() == [[3, 4]]
    assert out[0].tolist() == pytest.approx([2 * 0.8485281, 10 * 1.1313708], rel=1e-6)


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_norm() -> None:
    for shape in ((1, 1), (5,), (3, 2, 31), (1, 4096), (9, 700), (0, 16), (33, 128)):
        for dtype, limit in ((torch.float64, 1e-13), (torch.float32, 5e-7), (torch.float16, 8e-4)):
            x, weight = numbers(*shape, dtype=dtype), numbers(shape[-1], dtype=dtype)
            for given in (x, torch.stack((x, x), -1)[..., 0]):
                found = gpu.rms_norm(given, weight, 1e-6)
                assert found.dtype == dtype
                assert not x.numel() or error(found, ref.rms_norm(x.double(), weight.double(), 1e-6)) < limit


def check_addition() -> None:
    for shape in ((1, 4096), (3, 2, 31), (5, 768), (0, 16)):
        x, weight, branch = numbers(*shape), numbers(shape[-1]).half(), (2 * numbers(*shape) + 1).half()
        wide = x.double()
        exact = ref_add.add_rms_norm(wide, branch, 0.2474873734, weight.double(), 1e-6)
        found = gpu.add_rms_norm(x, branch, 0.2474873734, weight, 1e-6)
        assert found.dtype == torch.float16
        assert not x.numel() or (error(x, wide) < 1e-7 and error(found, exact) < 8e-4)


@pytest.mark.parametrize("rows", [1, 8192])
def test_compiles_for_every_card(rows: int) -> None:
    for columns in (4096, 128):
        x = torch.empty(rows, columns, device="meta")
        branch, weight = torch.empty_like(x, dtype=torch.bfloat16), torch.empty(columns, device="meta").bfloat16()
        (added,) = launches(lambda x=x, b=branch, w=weight: gpu.add_rms_norm(x, b, 0.25, w, 1e-6))  # type: ignore[misc]
        (plain,) = launches(lambda b=branch, w=weight: gpu.rms_norm(b, w, 1e-6))  # type: ignore[misc]
        for capability in SHARED_BYTES if columns == 4096 else (86, 90):
            # The warps' sums and nothing of a row.
            assert assert_fits(added, capability).shared_bytes <= 128
        assert_fits(plain, 90)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 4096), (8192, 4096), (3, 512), (4097 * 32, 128)], ids=str)
def test_full_size(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, branch = numbers(*shape, device="cuda"), numbers(*shape, dtype=dtype, device="cuda")
    weight = numbers(shape[-1], dtype=dtype, device="cuda")
    usual, wide = x.clone(), x.double()
    exact = ref_add.add_rms_norm(wide, branch, 0.25, weight.double(), 1e-6)
    limit = 2 * error(ref_add.add_rms_norm(usual, branch, 0.25, weight, 1e-6), exact)
    assert error(gpu.add_rms_norm(x, branch, 0.25, weight, 1e-6), exact) <= limit
    assert error(x, wide) <= 2 * error(usual, wide) + 1e-9
    exact = ref.rms_norm(branch.double(), weight.double(), 1e-6)
    assert error(gpu.rms_norm(branch, weight, 1e-6), exact) <= 2 * error(ref.rms_norm(branch, weight, 1e-6), exact)


@pytest.mark.gpu
def test_offsets_past_two_to_the_31() -> None:
    x = torch.zeros((1 << 19) + 8, 4096, device="cuda")
    x[-1] = numbers(4096, device="cuda")
    branch = torch.zeros(1, 4096, dtype=torch.bfloat16, device="cuda").expand(x.shape[0], -1)
    weight = torch.ones(4096, dtype=torch.bfloat16, device="cuda")
    found = gpu.add_rms_norm(x, branch, 0.25, weight, 1e-6)
    assert error(found[-1], ref.rms_norm(x[-1].double(), weight.double(), 1e-6)) < 5e-3


if __name__ == "__main__":
    main(globals())
