"""Work by hand for the released sizes, rates recovered from times made of them, and seconds that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.choices import packed
from salalocal.config import ModelConfig
from salalocal.hub import find_config
from salalocal.times import Chunk, Rates, Step, Work, _pairs, fit, is_sparse, predict, prefill_seconds, step_bytes, work

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))
RATES = Rates(
    matmul_flop=7e14, memory_bytes=3e12, channels=2e9, dense_flop=3e14, sparse_flop=1e14, score_flop=2e14,
    layer_step_seconds=2e-5,
)  # fmt: skip
FITTED = (
    "matmul_flop", "memory_bytes", "channels", "dense_flop", "sparse_flop", "score_flop", "layer_step_seconds",
)  # fmt: skip
MATRICES = 8 * (3 * 4096 * 4096 + 2 * 256 * 4096) + 24 * 5 * 4096 * 4096 + 32 * 3 * 16384 * 4096


def seconds(asked: Work, rates: Rates) -> float:
    return (
        asked.linear_flop / rates.matmul_flop
        + asked.channels / rates.channels
        + asked.dense_flop / rates.dense_flop
        + asked.sparse_flop / rates.sparse_flop
        + asked.score_flop / rates.score_flop
    )


def test_a_token_far_into_the_released_model_by_hand() -> None:
    one = work(RELEASED, 1 << 20, (1 << 20) + 1, sparse=True)
    assert one.linear_flop == 2 * MATRICES
    assert one.channels == 32 * 4096
    assert one.dense_flop == 0
    # 4 d FLOP x 32 heads x 8 layers, for 96 blocks of 64 tokens.
    assert one.sparse_flop == 4 * 128 * 32 * 8 * 96 * 64
    # 2 d FLOP x 32 heads x 8 layers, for a fine key every 16 and a coarse one every 64 tokens.
    assert one.score_flop == 2 * 128 * 32 * 8 * ((1 << 20) + 1) * 5 / 64


def test_a_short_prompt_is_read_densely() -> None:
    assert not is_sparse(RELEASED, 8191)
    assert is_sparse(RELEASED, 8192)
    asked = work(RELEASED, 0, 4, sparse=False)
    assert (asked.sparse_flop, asked.score_flop) == (0, 0)
    assert asked.dense_flop == 4 * 128 * 32 * 8 * (1 + 2 + 3 + 4)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_pairs_are_counted_one_by_one(start: int, tokens: int, most: int) -> None:
    stop = start + tokens
    assert _pairs(start, stop, most) == sum(min(position + 1, most) for position in range(start, stop))


def test_work_of_a_text_is_that_of_its_parts() -> None:
    whole = work(RELEASED, 0, 30000, sparse=True)
    parts = [work(RELEASED, start, start + 10000, sparse=True) for start in (0, 10000, 20000)]
    assert whole == Work(*(sum(values) for values in zip(*(tuple(vars(part).values()) for part in parts), strict=True)))


def test_bytes_of_a_step_by_hand() -> None:
    tokens = 1 << 20
    head = 73448 * 4096
    norms = 32 * 2 * 4096 + 24 * (2 * 128 + 4096) + 4096
    states = 2 * 24 * 32 * 128 * 128 * 4
    blocks = 8 * 2 * 128 * 2 * (2 * 96 * 64)
    keys = 8 * 2 * 128 * 2 * tokens * 5 // 64
    expected = 2 * (MATRICES + head + norms) + states + blocks + keys
    assert step_bytes(RELEASED, tokens, 2, unpacked=False) == expected
    # Below the switch every token is read, and no compressed key.
    short = 2 * (MATRICES + head + norms) + states + 8 * 2 * 128 * 2 * 2 * 1000
    assert step_bytes(RELEASED, 1000, 2, unpacked=False) == short


def test_packed_weights_make_steps_shorter_and_chunks_longer() -> None:
    int4 = packed(RELEASED, "int4")
    assert int4 is not None
    assert step_bytes(int4, 1000, 2, unpacked=False) < 0.35 * step_bytes(RELEASED, 1000, 2, unpacked=False)
    assert step_bytes(int4, 1000, 2, unpacked=True) == step_bytes(RELEASED, 1000, 2, unpacked=True)
    plain, unpacking = (prefill_seconds(model, RATES, 65536, 8192, 2, unpacked=False) for model in (RELEASED, int4))
    once = unpacking - plain
    assert once > 0
    # Half as large chunks unpack twice as often.
    assert prefill_seconds(int4, RATES, 65536, 4096, 2, unpacked=False) - plain == pytest.approx(2 * once)


def test_seconds_add_up() -> None:
    expected = predict(RELEASED, RATES, 65536, 8192, 2, unpacked=False)
    assert expected.first_token_seconds == pytest.approx(seconds(work(RELEASED, 0, 65536, sparse=True), RATES))
    step = step_bytes(RELEASED, 65536, 2, unpacked=False) / 3e12 + 32 * 2e-5
    assert expected.tokens_per_second == pytest.approx(1 / step)


def timed(start: int, tokens: int, *, sparse: bool) -> Chunk:
    return Chunk(start, tokens, sparse, seconds(work(RELEASED, start, start + tokens, sparse=sparse), RATES))


def chunks() -> dict[str, Chunk]:
    return {
        "first": timed(0, 2048, sparse=True),
        "middle": timed(16384, 2048, sparse=True),
        "far": timed(65536, 2048, sparse=True),
        "dense": timed(32768, 2048, sparse=False),
    }


def test_rates_are_found_again() -> None:
    taken = step_bytes(RELEASED, 16384, 2, unpacked=False) / 3e12 + 32 * 2e-5
    found = fit(RELEASED, chunks(), 7e14, 3e12, Step(16384, taken, 2, unpacked=False))
    for name in FITTED:
        value = getattr(RATES, name)
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name


def test_a_clock_that_runs_backwards_gives_no_negative_rates() -> None:
    noisy = chunks()
    noisy["far"] = replace(noisy["far"], seconds=noisy["middle"].seconds / 2)
    noisy["dense"] = replace(noisy["dense"], seconds=0.0)
    found = fit(RELEASED, noisy, 7e14, 3e12, Step(16384, 0.0, 2, unpacked=False))
    assert min(getattr(found, name) for name in FITTED) == found.layer_step_seconds == 0
    assert predict(RELEASED, found, 1 << 20, 8192, 2, unpacked=False).first_token_seconds > 0
