"""The package's list of ops, who serves them, and what happens where a kernel does not."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib import import_module, util
from timeit import timeit

import pytest
import torch
from numbers_of import random
from torch import Tensor

import salalocal_kernels
from salalocal_kernels import Op, dispatch
from salalocal_kernels.cpu import sparse_attention as cpu_module
from salalocal_kernels.ref import attention as ref_module

needs_triton = pytest.mark.skipif(util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor counts as one on a GPU; kernels are chosen, and must not be run."""
    monkeypatch.setattr(dispatch, "_device_type", lambda _: "cuda")


def served_by(op: Op[..., object], *arguments: object) -> str:
    return op._choose(arguments, {}).__module__


def test_every_op_of_the_network_is_listed_once() -> None:
    names = [op.name for op in salalocal_kernels.OPS]
    assert sorted(names) == sorted(set(names))
    assert set(names) <= set(salalocal_kernels.__all__)
    assert all(getattr(salalocal_kernels, op.name) is op for op in salalocal_kernels.OPS)
    assert all(op.__doc__ == op.reference.__doc__ for op in salalocal_kernels.OPS)


@pytest.mark.parametrize("device_type", ["cpu", "meta", pytest.param("cuda", marks=needs_triton)])
def test_implementations_name_modules_that_have_the_op(device_type: str) -> None:
    serving = salalocal_kernels.implementations(device_type)
    assert list(serving) == [op.name for op in salalocal_kernels.OPS]
    for name, module in serving.items():
        assert callable(getattr(import_module(module), name)), f"{name} is not in {module}"
        assert (".gpu." in module) <= (device_type == "cuda")
    assert serving["rope"] == "salalocal_kernels.ref.rope"
    sparse = {"cpu": "cpu.sparse_attention", "cuda": "gpu.sparse_attention_unions", "meta": "ref.attention"}
    assert serving["sparse_attention_prefill"] == f"salalocal_kernels.{sparse[device_type]}"


@needs_triton
def test_launchers_take_what_definitions_take() -> None:
    """A kernel may know more arguments than its definition, but the definition's come first and mean the same."""
    from inspect import signature

    for op in salalocal_kernels.OPS:
        launcher = getattr(import_module(op.module_on("cuda")), op.name)
        names = list(signature(op.reference).parameters)
        assert list(signature(launcher).parameters)[: len(names)] == names, op.name
        extra = list(signature(launcher).parameters.values())[len(names) :]
        assert all(parameter.default is not parameter.empty for parameter in extra), op.name


@needs_triton
@pytest.mark.usefixtures("on_gpu")
def test_a_kernel_is_chosen_by_device_dtype_and_size() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.zeros(2, 16, dtype=dtype), torch.zeros(16, dtype=dtype)
        assert served_by(salalocal_kernels.rms_norm, x, weight, 1e-6) == "salalocal_kernels.gpu.rms_norm"
    wide = torch.zeros(2, 16, dtype=torch.float64)
    assert served_by(salalocal_kernels.rms_norm, wide, wide[0], 1e-6) == "salalocal_kernels.ref.rms_norm"
    state = torch.zeros(2, 24, 24)
    odd = torch.zeros(5, 2, 24)
    assert served_by(salalocal_kernels.lightning_prefill, odd, odd, odd, odd, 1.0, state).endswith("ref.lightning")
    assert served_by(salalocal_kernels.token_mass, odd[0], odd, odd, odd, 0, 1.0).endswith("ref.token_mass")


@needs_triton
@pytest.mark.usefixtures("on_gpu")
def test_a_fallback_is_logged_once_and_watchers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    op = Op(ref_module.dense_attention, gpu="rms_norm", lacks=lambda *_: "heads of 24 channels")
    pages, q = torch.zeros(1, 2, 2, 16, 24), torch.zeros(5, 2, 24)
    with caplog.at_level(logging.WARNING), salalocal_kernels.watch() as outer:
        op(q, pages, 0, 1.0)
        with salalocal_kernels.watch() as seen:
            op(q, pages, 0, 1.0)
        op(q.double(), pages.double(), 0, 1.0)
    assert seen == outer
    assert seen.modules == {"dense_attention": "salalocal_kernels.ref.attention"}
    assert seen.fallbacks == {"dense_attention": "heads of 24 channels"}
    (record,) = caplog.records
    assert record.getMessage() == "dense_attention runs as plain PyTorch on the GPU: heads of 24 channels"


@pytest.mark.usefixtures("on_gpu")
def test_float64_and_ops_without_a_kernel_are_no_fallbacks() -> None:
    x = torch.zeros(2, 16, dtype=torch.float64)
    with salalocal_kernels.watch() as seen:
        salalocal_kernels.rms_norm(x, x[0], 1e-6)
        salalocal_kernels.linear(x.float(), x.float())
    assert seen.modules == {"rms_norm": "salalocal_kernels.ref.rms_norm", "linear": "salalocal_kernels.ref.linear"}
    assert seen.fallbacks == {}


@pytest.mark.usefixtures("on_gpu")
def test_without_triton_the_definitions_serve_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    x = torch.zeros(2, 16)
    with salalocal_kernels.watch() as seen:
        salalocal_kernels.rms_norm(x, x[0], 1e-6)
    assert seen.fallbacks == {"rms_norm": "Triton is not installed"}
    assert salalocal_kernels.implementations("cuda") == salalocal_kernels.implementations("meta")


def test_nothing_is_imported_for_gpus_where_none_is_used() -> None:
    code = (
        "import sys, torch, salalocal_kernels as k; k.rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6);"
        "sys.exit(any('triton' == m or m.startswith('salalocal_kernels.gpu') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@needs_triton
@pytest.mark.usefixtures("on_gpu")
def test_choosing_takes_microseconds() -> None:
    q, keys = torch.zeros(1, 32, 128), torch.zeros(2, 100, 128)
    arguments = (q, keys, keys, 5, 0.1, 16, 64, 25)
    op = salalocal_kernels.block_scores
    op._choose(arguments, {})
    assert min(timeit(lambda: op._choose(arguments, {}), number=200) for _ in range(5)) / 200 < 50e-6


def test_sparse_prefill_on_a_processor_runs_and_agrees_with_its_definition() -> None:
    rows, pages = random(4, 6, 8, seed=1), random(5, 2, 2, 4, 8, seed=2)
    table = torch.tensor([3, 0, 4, 1])
    blocks = torch.tensor([[0, 2, -1], [1, 2, -1]], dtype=torch.int32)[:, None].expand(2, 4, 3)
    # The tokens 8 to 11, all of them in block 2.
    found = salalocal_kernels.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3)
    assert torch.equal(found, cpu_module.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3))
    expected = ref_module.sparse_attention_prefill(rows, pages, table, blocks, 8, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_position_may_be_a_tensor() -> None:
    """As a captured graph has it; here every definition reads it."""
    length, at = 60, torch.tensor([59])
    q, keys = random(1, 6, 16, seed=1), random(2, 30, 16, seed=2)
    scores: list[Tensor] = [salalocal_kernels.block_scores(q, keys, keys, p, 0.3, 2, 8, 9) for p in (59, at)]
    assert torch.equal(*scores)
    blocks = [salalocal_kernels.select_blocks(scores[0], p, 8, 1, 1, 4) for p in (59, at)]
    assert torch.equal(*blocks)
    assert int(blocks[0].max()) == 59 // 8, "blocks after the own one are not there"
    pages, table = random(9, 2, 2, 8, 16, seed=3), torch.arange(9)
    outs = [
        salalocal_kernels.sparse_attention_decode(q[0], pages, table, blocks[0][:, 0], n, 0.3) for n in (length, at + 1)
    ]
    assert torch.equal(*outs)
    masses = [salalocal_kernels.token_mass(q[0], pages, table, blocks[0][:, 0], n, 0.3) for n in (length, at + 1)]
    assert torch.equal(*masses)
    levels = [(torch.zeros(2, 40, 16), torch.zeros(2, 40, 16)) for _ in range(2)]
    for (fine, coarse), position in zip(levels, (59, at), strict=True):
        salalocal_kernels.extend_compressed_keys(pages.float(), table, fine, coarse, position, 1, 2)
    assert torch.equal(levels[0][0], levels[1][0])
    assert bool(levels[0][0][:, 28].any()), "the window that ends with the token"
