"""A network with the released model's heads (128 channels, 16 queries to a key), narrow otherwise, on an NVIDIA GPU.

The golden models' heads are small, and may take other paths through the kernels. Here the same weights are read in
float64 by the definitions, and in each dtype by the kernels and by PyTorch on a processor.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from torch import Tensor

import salalocal
import salalocal_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SIZES = {
    "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 1, "head_dim": 128, "lightning_nkv": 16,
    "intermediate_size": 512, "vocab_size": 256, "dim_model_base": 256,
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64, "window_size": 128,
                      "topk": 4, "dense_len": 512},
}  # fmt: skip
PROMPT, CHUNK, STEPS = 1500, 700, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tiny_config("slsl", **SIZES))


def logits(folder: Path, device: str, dtype: str) -> Tensor:
    """[PROMPT + STEPS, vocab] float64, on the CPU: below dense_len, beyond it, and of single steps."""
    session = salalocal.load(folder, device=device, dtype=dtype).new_session()
    found = [session.prefill(random_ids(PROMPT), chunk_size=CHUNK, all_logits=True)]
    found += [session.step(token)[None] for token in random_ids(STEPS, seed=1)]
    return torch.cat([part.double().cpu() for part in found])


@pytest.fixture(scope="module")
def exact(folder: Path) -> Tensor:
    return logits(folder, "cuda", "float64")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_are_no_worse_than_pytorch(folder: Path, exact: Tensor, dtype: str) -> None:
    with salalocal_kernels.watch() as served:
        found = logits(folder, "cuda", dtype)
    assert served.fallbacks == {}
    same = logits(folder, "cpu", dtype)
    for part in (slice(0, 512), slice(512, PROMPT), slice(PROMPT, None)):
        error, allowed = ((x[part] - exact[part]).square().mean().sqrt() for x in (found, same))
        assert error <= 2 * allowed + 1e-6 * exact[part].square().mean().sqrt()
