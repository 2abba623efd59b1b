"""The feed-forward takes long inputs in slices, which give what the whole gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from salalocal.model.feed_forward import FeedForward
from salalocal_quant import DenseWeight, Int4Weight, PlanesWeight, Weight, together


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 24, 30])
def test_slices_give_what_the_whole_gives(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (DenseWeight(torch.randn(*shape, generator=generator)) for shape in ((48, 16), (48, 16), (16, 48)))
    whole = FeedForward(together([gate, up], torch.device("cpu")), down)
    u = torch.randn(tokens, 16, generator=generator)
    torch.testing.assert_close(replace(whole, slice_tokens=8)(u), whole(u), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [7, 8, 9, 24, 300])
@pytest.mark.parametrize("kind", ["dense", "packed", "planes"])
def test_some_channels_at_a_time_give_what_all_give(kind: str, tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Weight:
        values = torch.randn(*shape, generator=generator)
        if kind == "dense":
            return DenseWeight(values)
        packed = Int4Weight.quantize(values, 64, torch.float32)
        return packed if kind == "packed" else PlanesWeight.of(packed)

    gate, up, down = made(640, 64), made(640, 64), made(64, 640)
    whole = FeedForward(together([gate, up], torch.device("cpu")), down)
    u = torch.randn(tokens, 64, generator=generator)
    torch.testing.assert_close(replace(whole, channels=192)(u), whole(u), rtol=1e-4, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("tokens", [8192, 300, 3])
def test_some_channels_at_a_time_on_the_gpu(tokens: int) -> None:
    """At the released sizes: no further from float64 than all channels at once."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    gate, up, down = (
        Int4Weight.quantize(torch.randn(*shape, device=device) / shape[1] ** 0.5, 128, torch.bfloat16)
        for shape in ((16384, 4096), (16384, 4096), (4096, 16384))
    )
    whole = FeedForward(together([PlanesWeight.of(gate), PlanesWeight.of(up)], device), PlanesWeight.of(down))
    u = torch.randn(tokens, 4096, device=device, dtype=torch.bfloat16)
    last = u[-100:].double()
    exact = functional.silu(last @ gate.unpack().data.double().T) * (last @ up.unpack().data.double().T)
    exact = exact @ down.unpack().data.double().T
    found, usual = (each(u)[-100:].double() - exact for each in (replace(whole, channels=2048), whole))
    assert found.square().mean().sqrt() <= 1.1 * usual.square().mean().sqrt()
