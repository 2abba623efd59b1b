"""What is timed beside our kernels computes the same op."""

from __future__ import annotations

import pytest
import torch

from salalocal_kernels.gpu.bench import peers
from salalocal_kernels.ref.lightning import lightning_decode, lightning_prefill, lightning_slopes

HEADS, DIM, TOKENS = 4, 128, 200


def lightning(device: str) -> tuple[torch.Tensor, ...]:
    q, k, v = (torch.randn(TOKENS, HEADS, DIM, device=device, dtype=torch.bfloat16) for _ in range(3))
    return q, k, v, torch.tensor(lightning_slopes(HEADS), device=device), torch.randn(HEADS, DIM, DIM, device=device)


def assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert found.shape == exact.shape
    assert (found.double() - exact).square().mean() < 1e-4 * exact.square().mean()


@pytest.mark.gpu
def test_fla_on_a_gpu() -> None:
    pytest.importorskip("fla")
    q, k, v, slopes, state = lightning("cuda")
    peer = peers.chunked_lightning(q, k, v, slopes, state)
    assert peer is not None
    (out,), (last,) = peer.prepare()()  # type: ignore[misc]
    wide = (x.double() for x in (q, k, v, slopes))
    exact, exact_last = lightning_prefill(*wide, DIM**-0.5, state.double())
    assert_near(out, exact)
    assert_near(last, exact_last)

    peer = peers.recurrent_lightning(q[0], k[0], v[0], slopes, [state])
    assert peer is not None
    ((out,),), (last,) = peer.prepare()()  # type: ignore[misc]
    exact_last = state.double()
    exact = lightning_decode(*(x.double() for x in (q[0], k[0], v[0], slopes)), DIM**-0.5, exact_last)
    assert_near(out, exact)
    assert_near(last, exact_last)


@pytest.mark.gpu
def test_bitsandbytes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    x, matrix = torch.randn(1, 512, device="cuda").bfloat16(), torch.randn(256, 512, device="cuda").bfloat16()
    peer = peers.four_bit_linear(x, 256, 1)
    assert peer is not None
    monkeypatch.setattr(torch, "randn", lambda *_, **__: matrix)
    found = peer.prepare()()
    assert isinstance(found, torch.Tensor)
    exact = x.double() @ matrix.double().T
    # 4 bits of normal numbers lose a tenth.
    assert (found.double() - exact).square().mean() < 0.15**2 * exact.square().mean()
