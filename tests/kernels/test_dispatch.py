"""The package's list of ops and who serves them."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from numbers_of import random
from torch import Tensor

import salalocal_kernels
from salalocal_kernels.cpu import sparse_attention as cpu_module
from salalocal_kernels.ref import attention as ref_module

SERVING = {"cpu": cpu_module, "cuda": ref_module, "meta": ref_module}


def test_every_op_of_the_network_is_listed_once() -> None:
    names = [op.__name__ for op in salalocal_kernels.OPS]
    assert sorted(names) == sorted(set(names))
    assert set(names) >= {
        "lightning_prefill", "lightning_decode", "compress_keys", "block_scores", "select_blocks",
        "sparse_attention_prefill", "sparse_attention_decode", "rms_norm", "rope", "linear", "token_mass",
    }  # fmt: skip
    assert set(names) <= set(salalocal_kernels.__all__)


@pytest.mark.parametrize("device_type", SERVING)
def test_implementations_name_the_modules_that_run(device_type: str) -> None:
    serving = salalocal_kernels.implementations(device_type)
    assert list(serving) == [op.__name__ for op in salalocal_kernels.OPS]
    for name, module in serving.items():
        run, public = getattr(import_module(module), name), getattr(salalocal_kernels, name)
        assert run.__module__ == module, f"{name} is not at home in {module}"
        assert run is public or public.__module__ == "salalocal_kernels", f"{name} is neither served nor dispatched"
    assert serving["rope"] == "salalocal_kernels.ref.rope"
    assert serving["sparse_attention_prefill"] == SERVING[device_type].__name__


@pytest.mark.parametrize("device_type", ["cpu", "meta"])
def test_sparse_prefill_goes_to_the_one_that_is_named(device_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[object, ...]]] = []
    for module in (cpu_module, ref_module):

        def spy(*arguments: object, name: str = module.__name__) -> Tensor:
            calls.append((name, arguments))
            return torch.zeros(())

        monkeypatch.setattr(module, "sparse_attention_prefill", spy)
    tensors = [torch.zeros(1, device=device_type) for _ in range(4)]
    salalocal_kernels.sparse_attention_prefill(*tensors, 5, 0.25)
    ((name, arguments),) = calls
    assert name == SERVING[device_type].__name__
    assert all(one is other for one, other in zip(arguments, [*tensors, 5, 0.25], strict=True))


def test_sparse_prefill_on_a_processor_runs_and_agrees_with_its_definition() -> None:
    rows, pages = random(4, 6, 8, seed=1), random(5, 2, 2, 4, 8, seed=2)
    table = torch.tensor([3, 0, 4, 1])
    blocks = torch.tensor([[0, 2, -1], [1, 2, -1]], dtype=torch.int32)[:, None].expand(2, 4, 3)
    # The tokens 8 to 11, all of them in block 2.
    found = salalocal_kernels.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3)
    assert torch.equal(found, cpu_module.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3))
    expected = ref_module.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
