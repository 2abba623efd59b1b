"""One step whose gradients are not numbers leaves weights that are."""

from __future__ import annotations

import torch
from torch import nn

from salalocal.training.optimizer import Optimizer


def test_a_step_with_a_nan_changes_no_weight_into_one() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = Optimizer(network)
    for poisoned in (False, True, False):
        network(torch.randn(3, 8)).square().sum().backward()
        if poisoned:
            bias = network[1].bias.grad
            assert bias is not None
            bias[0] = torch.nan
        before = [parameter.clone() for parameter in network.parameters()]
        optimizer.step(1.0)
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
        if not poisoned:
            assert any((a != b).any() for a, b in zip(before, network.parameters(), strict=True))
