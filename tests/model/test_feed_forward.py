"""The feed-forward takes long inputs in slices, which give what the whole gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from salalocal.model.feed_forward import FeedForward
from salalocal_quant import DenseWeight, together


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 24, 30])
def test_slices_give_what_the_whole_gives(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (DenseWeight(torch.randn(*shape, generator=generator)) for shape in ((48, 16), (48, 16), (16, 48)))
    whole = FeedForward(together([gate, up], torch.device("cpu")), down)
    u = torch.randn(tokens, 16, generator=generator)
    torch.testing.assert_close(replace(whole, slice_tokens=8)(u), whole(u), rtol=1e-5, atol=1e-4)
