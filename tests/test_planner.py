"""Footprints by hand for the released sizes, and against what engines really take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.config import ModelConfig
from salalocal.planner import Footprint, footprint

GOLDEN = Path(__file__).parent / "golden" / "models"
MIXERS = ["minicpm4"] * 8 + ["lightning-attn"] * 24
RELEASED = {
    "model_type": "minicpm_sala", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 16384, "vocab_size": 73448,
    "max_position_embeddings": 524288, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256,
    "mixer_types": MIXERS,
    "sparse_config": {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                      "window_size": 2048, "topk": 64, "dense_len": 8192},
}  # fmt: skip


def released(**changes: object) -> ModelConfig:
    return ModelConfig.from_fields({**RELEASED, **changes}, "here.json")


def test_the_released_model_by_hand() -> None:
    sizes = footprint(released(), 2, 8192)
    # K and V of 8 layers x 2 heads x 128 channels in bf16: 8 KiB per token; compressed keys 1/16 + 1/64 of the keys;
    # storage may grow by an eighth beyond need.
    assert sizes.token_bytes == pytest.approx((8192 + 4096 * (1 / 16 + 1 / 64)) * 1.125)
    # 24 states of 32 x 128 x 128 in float32: 2 MiB each, before and after a chunk.
    assert sizes.session_bytes == 2 * 24 * (2 << 20)
    attention = 8 * (3 * 4096 * 4096 + 2 * 256 * 4096)
    lightning = 24 * (5 * 4096 * 4096 + 2 * 128 + 4096)
    every = 32 * (3 * 16384 * 4096 + 2 * 4096)
    assert sizes.weight_bytes == 2 * (attention + lightning + every + 2 * 73448 * 4096 + 4096)


def test_float32_takes_twice_as_much_but_for_the_states() -> None:
    half, full = footprint(released(), 2, 256), footprint(released(), 4, 256)
    assert full.weight_bytes == 2 * half.weight_bytes
    assert full.token_bytes == pytest.approx(2 * half.token_bytes)
    assert full.session_bytes == half.session_bytes


def test_a_tied_head_counts_once() -> None:
    difference = footprint(released(), 2, 256).weight_bytes
    difference -= footprint(released(tie_word_embeddings=True), 2, 256).weight_bytes
    assert difference == 2 * 73448 * 4096


def test_without_attention_layers_memory_does_not_limit_the_length() -> None:
    sizes = footprint(released(mixer_types=["lightning"] * 32), 2, 256)
    assert sizes.token_bytes == 0
    assert sizes.longest_context(1 << 34) > 1 << 30
    assert sizes.longest_context(0) == 0


sizes = st.builds(
    Footprint,
    weight_bytes=st.just(0),
    token_bytes=st.floats(1, 1e6),
    session_bytes=st.integers(0, 1 << 30),
    workspace_bytes=st.integers(0, 1 << 30),
)


@given(sizes, st.integers(0, 1 << 40))
def test_the_longest_context_fits_and_one_more_does_not(sizes: Footprint, available: int) -> None:
    tokens = sizes.longest_context(available)
    assert tokens >= 0
    if tokens:
        assert sizes.context_bytes(tokens) <= available + 1
    assert sizes.context_bytes(tokens + 1) >= min(available - 1, sizes.context_bytes(1))


@pytest.mark.parametrize(("model", "dtype", "item_bytes"), [("m2", "float32", 4), ("m4", "bfloat16", 2)])
def test_against_a_session(model: str, dtype: str, item_bytes: int) -> None:
    import salalocal

    engine = salalocal.load(GOLDEN / model, device="cpu", dtype=dtype)
    sizes = footprint(engine.config, item_bytes, 256)
    assert sizes.weight_bytes == pytest.approx(engine.weight_bytes, rel=0.005), "norms are the rest"
    session = engine.new_session()
    states = session.nbytes
    tokens = 1500
    session.prefill([token % 250 for token in range(tokens)], chunk_size=500)
    grown = session.nbytes - states
    assert sizes.token_bytes * tokens / 1.125 <= grown <= sizes.token_bytes * (tokens + 64 * engine.config.block_size)


def test_an_engine_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import salalocal
    from salalocal.engine import engine as engine_module
    from salalocal.engine import load as load_module

    engine = salalocal.load(GOLDEN / "m2", device="cpu", dtype="float32")
    sizes = footprint(engine.config, 4, load_module.default_chunk(engine.config, engine.device))
    limit = sizes.context_bytes(1000)
    monkeypatch.setattr(engine_module, "available_bytes", lambda _: limit)
    monkeypatch.setattr(load_module, "available_bytes", lambda _: limit)
    session = engine.new_session()
    assert 999 <= session.max_tokens <= 1000
    with pytest.raises(salalocal.ContextTooLong, match="1,200 tokens are asked for and 1,000 fit") as refused:
        session.prefill([1] * 1200)
    assert refused.value.limit_tokens == session.max_tokens
    limit = sizes.session_bytes
    with pytest.raises(salalocal.DoesNotFit, match="a session of m2 needs"):
        engine.new_session()
    with pytest.raises(salalocal.DoesNotFit, match="m2: needs") as heavy:
        salalocal.load(GOLDEN / "m2", device="cpu", dtype="float32")
    assert heavy.value.needed_bytes > heavy.value.available_bytes == limit


def test_planning_needs_no_torch() -> None:
    code = "import sys, salalocal.planner, salalocal.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
