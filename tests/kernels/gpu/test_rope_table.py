"""Cosines and sines of positions: interpreted against the definition, compiled for every card, run."""

from __future__ import annotations

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu import rope_table as gpu
from salalocal_kernels.ref.rope import rope_table as reference

POSITIONS = (0, 1, 63, 4097, 1_000_003, (1 << 24) + 8)


def compare(device: str) -> None:
    for dim, theta in ((2, 10000.0), (6, 500.0), (64, 10000.0), (128, 1e6)):
        for positions in (torch.tensor(POSITIONS), torch.tensor([777_777]), torch.arange(0)):
            positions = positions.to(device)
            found, wanted = gpu.rope_table(positions, dim, theta), reference(positions, dim, theta)
            assert found.dtype == torch.float32
            # Of angles rounded to float32 the same, cosines and sines differ in their last place at most.
            exact = reference(positions, dim, theta, torch.float64)
            assert (found - exact).abs().max() <= 2e-7 if len(positions) else True
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7)


def test_kernel_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_the_definition() -> None:
    compare("cpu")


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int) -> None:
    positions = torch.empty(1, dtype=torch.int64, device="meta")
    (launch,) = launches(lambda: gpu.rope_table(positions, 128, 10000.0))
    assert_fits(launch, capability)


@pytest.mark.gpu
def test_on_the_card() -> None:
    compare("cuda")


if __name__ == "__main__":
    main(globals())
