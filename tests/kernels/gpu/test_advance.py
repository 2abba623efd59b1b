"""The inputs of the next step."""

from __future__ import annotations

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import advance as gpu
from salalocal_kernels.ref import advance as ref


def test_kernel_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_both() -> None:
    for op in (gpu.advance, ref.advance):
        for chosen, token in ((7, 7), (0, 0), (-1, 0)):
            inputs, told = torch.tensor([3, 1 << 33, -5, 11, 1 << 34]), torch.tensor([99])
            op(inputs, torch.tensor([chosen]), told)
            assert inputs.tolist() == [token, (1 << 33) + 1, -5, 12, (1 << 34) + 1]
            assert told.tolist() == [chosen]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int) -> None:
    inputs, chosen, told = (torch.empty(size, dtype=torch.int64, device="meta") for size in (5, 1, 1))
    (launch,) = launches(lambda: gpu.advance(inputs, chosen, told))
    assert_fits(launch, capability)


@pytest.mark.gpu
def test_on_the_card() -> None:
    for op in (gpu.advance, ref.advance):
        inputs, told = torch.tensor([3, 1 << 33, -5, 11, 7], device="cuda"), torch.tensor([99]).pin_memory()
        op(inputs, torch.tensor([9], device="cuda"), told)
        assert inputs.tolist() == [9, (1 << 33) + 1, -5, 12, 8]
        assert told.tolist() == [9]


if __name__ == "__main__":
    main(globals())
