"""The likeliest token: interpreted against its definition, compiled for every card, run."""

from __future__ import annotations

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from torch import Tensor

from salalocal_kernels.gpu import greedy_token as gpu
from salalocal_kernels.ref import greedy_token as ref

INF = float("inf")


def cases(device: str = "cpu") -> list[tuple[Tensor, int]]:
    """Logits and the token, for ties, edges of a pass, and what is not finite."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in (1, 2, 511, 2048, 2049, 20_000):
        x = torch.randn(size, generator=generator)
        found.append((x, int(x.argmax())))
        for place in {0, size // 2, size - 1}:
            high = x.clone()
            high[place] = 100.0
            found.append((high, place))
            high = high.clone()
            high[-1] = 100.0
            found.append((high, place))
            for bad in (float("nan"), INF):
                high = high.clone()
                high[place] = bad
                found.append((high, -1))
        found.append((torch.full((size,), -INF), -1))
        one = torch.full((size,), -INF)
        one[size // 3] = -3e38
        found.append((one, size // 3))
    return [(x.to(device), token) for x, token in found]


def test_kernel_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_all() -> None:
    for logits, token in cases():
        assert ref.greedy_token(logits).tolist() == [token]
        found = gpu.greedy_token(logits)
        assert found.dtype == torch.int64
        assert found.tolist() == [token]
    assert gpu.greedy_token(torch.tensor([1.0, 3.0, 3.0], dtype=torch.float16)).tolist() == [1]


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int) -> None:
    logits = torch.empty(73448, dtype=torch.float32, device="meta")
    (launch,) = launches(lambda: gpu.greedy_token(logits))
    assert launch.arguments["PARTS"] == 36
    assert_fits(launch, capability)


@pytest.mark.gpu
def test_on_the_card() -> None:
    for logits, token in cases("cuda"):
        assert gpu.greedy_token(logits).tolist() == [token]
    # Many launches in a row, each of which finds the counter at 0, and the stores of all programs.
    logits = torch.randn(500, 73448, device="cuda")
    found = torch.cat([gpu.greedy_token(row) for row in logits])
    assert torch.equal(found, logits.argmax(1))
    assert gpu._arrived(logits.device).item() == 0


if __name__ == "__main__":
    main(globals())
