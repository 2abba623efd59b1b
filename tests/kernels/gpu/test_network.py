"""The whole network over the kernels, interpreted: every op that has one is served by it, and the logits are the same.

The model is random and small, in sizes that the kernels take; one of the two has heads so narrow that they are padded.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
from sparse_gate import run_checks, run_interpreted

import salalocal
import salalocal_kernels
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.engine import Engine
from salalocal.engine.sampling import Sampler, Sampling
from salalocal_kernels import dispatch

PROMPT, STEPS = 75, 3
SPARSE = {
    "kernel_size": 8, "kernel_stride": 4, "init_blocks": 1, "block_size": 16, "window_size": 16, "topk": 2,
    "dense_len": 60, "use_nope": False,
}  # fmt: skip


def tiny_engine(head_dim: int) -> Engine:
    sys.path.insert(0, str(Path(__file__).parents[2] / "engine"))
    from naive_sala import tiny_config, write_model

    sizes = {"hidden_size": 4 * head_dim, "num_attention_heads": 4, "head_dim": head_dim}
    changes = {**sizes, "lightning_nkv": 2, "lightning_head_dim": head_dim, "sparse_config": SPARSE}
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), tiny_config("sls", **changes))
        return salalocal.load(path, device="cpu", dtype="float32")


def run(engine: Engine) -> list[torch.Tensor]:
    """Logits of a prompt in two chunks and of some steps; then everything once more below dense_len, and both again
    with steps over memory that has room for more, whose position only the device knows."""
    ids = [(7 * token) % 40 for token in range(PROMPT)]
    found = []
    for prompt in (ids, ids[:20]):
        for is_recorded in (False, True):
            session = engine.new_session()
            if is_recorded:
                session._reader.decoder = DecodeGraph(engine._network, 400)
            found.append(session.prefill(prompt, chunk_size=40, all_logits=True))
            found += [session.step(token) for token in range(STEPS)]
            sampler = Sampler(Sampling(temperature=0.7, top_p=0.9, seed=3))
            found.append(torch.tensor([session.step_and_choose(1, sampler) for _ in range(2)]))
            found += [session.linear_state(1)]
    return found


def check_the_network() -> None:
    for head_dim in (16, 8):
        engine = tiny_engine(head_dim)
        expected = run(engine)
        on_processor = dispatch._device_type
        dispatch._device_type = lambda _: "cuda"
        try:
            with salalocal_kernels.watch() as served:
                found = run(engine)
        finally:
            dispatch._device_type = on_processor
        assert served.fallbacks == {}
        named = salalocal_kernels.implementations("cuda")
        assert all(named[op] == module for op, module in served.modules.items())
        assert {"lightning_prefill", "lightning_step", "sparse_attention_prefill", "gather_rows"} <= set(served.modules)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


if __name__ == "__main__":
    run_checks(check_the_network)
