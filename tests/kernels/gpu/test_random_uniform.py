"""The random number as a Triton kernel: bit for bit its definition's, and through the compiler."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted

from salalocal_kernels.gpu.random_uniform import random_uniform
from salalocal_kernels.ref.random_uniform import random_uniform as reference

CASES = [(seed, counter) for seed in (0, 1, 12345, 1 << 32, (1 << 63) - 1) for counter in (0, 1, 77, 2**31 - 1)]


def compare(device: str) -> None:
    for seed, counter in CASES:
        arguments = torch.tensor([seed], device=device), torch.tensor([counter], device=device)
        assert float(random_uniform(*arguments)) == float(reference(*arguments)), (seed, counter)


def check_bit_for_bit() -> None:
    compare("cpu")


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles(capability: int) -> None:
    number = torch.empty(1, dtype=torch.int64, device="meta")
    (launch,) = launches(lambda: random_uniform(number, number))
    assert_fits(launch, capability)


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    compare("cuda")


if __name__ == "__main__":
    main(globals())
