"""Footprints by hand for the released sizes, and against what engines really take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.config import ModelConfig
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.planner import (
    Footprint,
    Tiers,
    capped,
    footprint,
    kv_budget,
    packed,
    tiers,
    usable_gpu_bytes,
    with_kv,
)

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


def test_a_budget_is_shared_out_by_hand() -> None:
    # A slot is 32 KiB, a page of both heads 64 KiB. A third for each buffer, the rest for the slots of 8 layers.
    assert tiers(released(), 2, 384 << 20) == Tiers(slots=(128 << 20) // (8 << 15), staged_pages=2048)
    assert tiers(released(), 2, 1 << 30).staged_pages == 4096, "256 MiB until slots have 1 GiB"
    assert tiers(released(), 2, 9 << 28) == Tiers(slots=(5 << 28) // (8 << 15), staged_pages=8192)
    assert tiers(released(), 2, 8 << 30).staged_pages == 16384, "1 GiB at most"
    # Dense steps read 128 blocks of 2 heads, and a buffer takes 129 pages.
    least = 8 * 256 * (32 << 10) + 2 * 129 * (64 << 10)
    assert tiers(released(), 2, least) == Tiers(slots=256, staged_pages=129)
    with pytest.raises(DoesNotFit) as caught:
        tiers(released(), 2, least - 1)
    assert caught.value.needed_bytes == least


@given(
    budget=st.integers(0, 1 << 35), item_bytes=st.sampled_from([2, 4, 8]), kv=st.sampled_from(["full", "int8", "fp8"])
)
def test_no_share_exceeds_the_budget_or_is_too_small(budget: int, item_bytes: int, kv: str) -> None:
    least = 8 * 256 * 64 * 128 * 2 * item_bytes + 2 * 129 * 2 * 64 * 128 * 2 * item_bytes
    strip = 2 * 64 * 2 * (128 + 2)
    least += 0 if kv == "full" else 129 * strip
    if budget < least:
        with pytest.raises(DoesNotFit):
            tiers(released(), item_bytes, budget, kv)
        return
    shares = tiers(released(), item_bytes, budget, kv)
    slot = 64 * 128 * 2 * item_bytes
    assert 8 * shares.slots * slot + 4 * shares.staged_pages * slot + shares.strip_pages * strip <= budget
    assert shares.slots >= 256
    assert shares.staged_pages >= 129
    assert (shares.strip_pages > 0) == (kv != "full")


def test_8_bits_in_host_memory_by_hand() -> None:
    """Of a token in 8 layers K and V of 2 heads, 128 bytes and 2 for the largest number; an eighth in reserve."""
    full = footprint(released(), 2, 8192)
    assert full.host_token_bytes == 1.125 * 8 * 2 * 2 * 256
    for kv in ("int8", "fp8"):
        small = with_kv(released(), full, kv)
        assert small.host_token_bytes == 1.125 * 8 * 2 * 2 * 130
        assert small.longest_tiered(1 << 40, 1 << 30) == int((1 << 30) / small.host_token_bytes)
        assert small.total_bytes(1000) == full.total_bytes(1000), "the device has them in full"
    assert with_kv(released(), full, "full") == full
    shares = tiers(released(), 2, 1 << 30, "int8")
    assert (shares.staged_pages, shares.strip_pages) == (4096, 512)
    assert shares.slots == ((512 << 20) - 512 * 2 * 16640) // (8 << 15)


def test_a_model_that_reads_everything_has_no_budget() -> None:
    with pytest.raises(InvalidRequest, match="sparse attention"):
        tiers(released(mixer_types=["lightning"] * 32), 2, 1 << 30)


def test_a_million_tokens_on_a_card_of_8_gib() -> None:
    """In int4 beside weights, compressed keys, states and workspace; 24 GB hold all K/V."""
    config = packed(released(), "int4")
    assert config is not None
    usable = usable_gpu_bytes(8 << 30)
    chunk, sizes = capped(config, 2, usable)
    assert chunk == 8192
    assert sizes.has_host_table
    assert capped(config, 2, 80 << 30) == (8192, footprint(config, 2, 8192))
    budget = kv_budget(config, sizes, usable)
    assert budget is not None
    assert budget > 160 << 20
    tiers(config, 2, budget)
    left = usable - sizes.weight_bytes - budget
    assert sizes.longest_tiered(left, 10 << 30) >= 1 << 20
    assert sizes.longest_tiered(left, 5 << 30) < 1 << 20, "the host's memory may be what is short"
    assert kv_budget(config, sizes, 24 << 30) is None
    assert kv_budget(released(), footprint(released(), 2, 8192), 8 << 30) == 0, "the weights alone do not fit"
