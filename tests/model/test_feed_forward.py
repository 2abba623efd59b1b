"""The feed-forward takes long inputs in slices, which give what the whole gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

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
