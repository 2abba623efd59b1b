"""What fits, what else would, and that `load` says the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from salalocal.bus_times import Away, Bus
from salalocal.choices import packed
from salalocal.config import ModelConfig
from salalocal.errors import InvalidRequest
from salalocal.forecast import Place, kv_away, make_plan
from salalocal.hub import find_config
from salalocal.kv_tiers import Tiers
from salalocal.planner import footprint, usable_gpu_bytes
from salalocal.roofline import Bare, card_rates
from salalocal.saved_size import saved_bytes
from salalocal.times import Rates, predict, prefill_seconds

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))
GOLDEN = Path(__file__).parent / "golden" / "models"
RATES = Rates(1e14, 1e12, 1e9, 1e14, 1e13, 1e13, 1e-5)
M = 1 << 20
LLAMA = ModelConfig.llama(
    {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 100, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "a.gguf",
)  # fmt: skip


def gpu(gib: float, rates: Rates | None = RATES) -> Place:
    return Place(True, 2, usable_gpu_bytes(int(gib * 2**30)), rates)


def capped(gib: float, host_gib: float) -> Place:
    return replace(gpu(gib), host_bytes=int(host_gib * 2**30))


# One H100, docs/performance.md: ceilings of a run of `bench steps`, and what the released model took in it; whole texts
# stand in "Long texts".
H100 = card_rates(Bare(copy_bytes=2.92e12, matmul_flop=680e12, narrow_flop={"int8": 871e12, "fp8": 1285e12}))
MEASURED_MS = {
    "decode, 64K": 2.884,
    "decode, 1M": 3.069,
    "chunk of 8,192 behind 16K, full": 277.84,
    "chunk of 8,192 behind 16K, int8": 206.31,
    "chunk of 8,192 behind 16K, fp8": 184.25,
    "text of 256K, full": 9420,
    "text of 256K, fp8": 6420,
}


def predicted_ms(what: str) -> float:
    model, chunk = packed(RELEASED, "int4"), 8192
    assert model is not None
    if what.startswith("decode"):
        return 1e3 / predict(model, H100, M if "1M" in what else M >> 4, chunk, 2, unpacked=False).tokens_per_second
    stop, start = (M >> 2, 0) if what.startswith("text") else (16384 + chunk, 16384)
    seconds = [
        prefill_seconds(model, H100, tokens, chunk, 2, unpacked=False, prefill=what.split()[-1]) if tokens else 0.0
        for tokens in (stop, start)
    ]
    return 1e3 * (seconds[0] - seconds[1])


@pytest.mark.parametrize("what", MEASURED_MS)
def test_what_an_h100_took_is_predicted_within_15_percent(what: str) -> None:
    assert predicted_ms(what) == pytest.approx(MEASURED_MS[what], rel=0.15)


def test_k_and_v_in_main_memory() -> None:
    planned = make_plan(RELEASED, M, capped(24, 64))
    assert planned.fits
    assert planned.asked.times is None, "nothing is known of the bus"
    assert sum(planned.parts().values()) == planned.asked.total_bytes <= capped(24, 64).usable_bytes
    sizes = planned.choice.sizes
    assert (
        planned.host_bytes
        == sizes.kv_bytes(M)
        == sizes.context_bytes(M) - (sizes.compressed_bytes(M) + sizes.session_bytes + sizes.workspace_bytes)
    )
    choice, usable = make_plan(RELEASED, M, capped(24, 4096)).choice, gpu(24).usable_bytes
    longest = choice.longest_tokens
    assert choice.device_bytes(longest) <= usable < choice.device_bytes(longest + 99)


BUS = Bus(
    read_bytes=5e10,
    write_bytes=5e10,
    gather_bytes=4e10,
    fetch_seconds=1e-5,
    piece_token_seconds=1e-8,
    lock_byte_seconds=1e-10,
)


def test_times_with_k_and_v_in_main_memory() -> None:
    int4 = packed(RELEASED, "int4")
    assert int4 is not None
    rates = replace(H100, bus=BUS)
    small, large = (make_plan(int4, M, replace(capped(gib, 64), rates=rates)).asked.times for gib in (8, 16))
    resident = make_plan(int4, M, gpu(80, rates)).asked.times
    assert small is not None
    assert large is not None
    assert resident is not None
    # Chunks of 8,192 both; what the buffers do not hold ahead is waited for, and large ones hold all of it.
    assert small.first_token_seconds > large.first_token_seconds >= resident.first_token_seconds
    assert small.tokens_per_second < resident.tokens_per_second


def test_8_bits_pass_the_bus_in_less_time() -> None:
    slow_bus = replace(BUS, read_bytes=5e9, gather_bytes=5e9, fetch_seconds=0.0)
    place = replace(capped(8, 64), rates=replace(H100, bus=slow_bus))
    int4 = packed(RELEASED, "int4")
    assert int4 is not None
    full, int8, fp8 = (make_plan(int4, M, replace(place, kv=kv)).asked.times for kv in ("full", "int8", "fp8"))
    assert full is not None
    assert int8 is not None
    assert int8 == fp8
    assert int8.first_token_seconds < full.first_token_seconds
    assert int8.tokens_per_second > full.tokens_per_second


def test_the_bytes_over_the_bus_by_hand() -> None:
    """Of a token in 8 layers K and V of 2 heads: 128 numbers of 2 bytes, or 128 codes and 2 bytes for their scale."""
    shares = Tiers(1024, 512)
    assert kv_away(RELEASED, 2, shares) == Away(8 * 2 * 2 * 256, 512, 1024)
    assert kv_away(RELEASED, 2, shares, "int8") == Away(8 * 2 * 2 * 130, 512, 1024)


def test_a_saved_session_is_told_of_every_setting() -> None:
    planned = make_plan(RELEASED, M, gpu(24))
    assert planned.asked.saved_bytes == saved_bytes(RELEASED, 2, M)
    assert [near.saved_bytes for near in planned.nearest] == [
        saved_bytes(RELEASED, 2, near.tokens) for near in planned.nearest
    ]


def test_main_memory_limits_it_too() -> None:
    planned = make_plan(RELEASED, M, capped(24, 4))
    assert not planned.fits
    (as_it_is, *_) = planned.nearest
    assert as_it_is.tokens == planned.choice.longest_tokens < M
    assert planned.choice.host_bytes(as_it_is.tokens) <= 4 * 2**30 + 1


def test_8_bits_in_main_memory() -> None:
    planned, full = (make_plan(RELEASED, M, replace(capped(24, 5), kv=kv)) for kv in ("int8", "full"))
    assert planned.fits
    assert not full.fits
    assert planned.host_bytes == int(full.host_bytes * 130 / 256)
    for place in (replace(capped(80, 64), kv="int8"), replace(gpu(24), kv="fp8")):
        with pytest.raises(InvalidRequest, match=f"kv in {place.kv} is for K and V in main memory"):
            make_plan(RELEASED, M, place)


def test_load_does_not_know_how_long_a_context_will_be() -> None:
    assert make_plan(RELEASED, 1 << 16, capped(24, 64)).host_bytes
    assert not make_plan(RELEASED, 1 << 16, gpu(24)).host_bytes


def test_what_fits_stays_on_the_card() -> None:
    assert make_plan(RELEASED, M, capped(80, 64)) == make_plan(RELEASED, M, gpu(80))
    assert make_plan(RELEASED, M, capped(80, 64)).host_bytes == 0


def test_what_fits() -> None:
    planned = make_plan(RELEASED, M, gpu(80))
    assert planned.fits
    assert planned.nearest == ()
    assert planned.asked.total_bytes == footprint(RELEASED, 2, 8192).total_bytes(M)
    assert planned.asked.times is not None


@pytest.mark.parametrize("tokens", [1, 1000, M])
def test_parts_add_up(tokens: int) -> None:
    planned = make_plan(RELEASED, tokens, gpu(80))
    assert sum(planned.parts().values()) == planned.asked.total_bytes
    assert planned.parts()["compressed_keys"] == int(8 * 1.125 * 512 * (1 / 16 + 1 / 64) * tokens)


def test_the_mildest_packing_that_fits_is_named() -> None:
    planned = make_plan(RELEASED, M, gpu(24))
    assert planned.obstacle == "memory"
    as_it_is, mild = planned.nearest
    assert as_it_is.packing is None
    assert as_it_is.tokens == planned.choice.longest_tokens
    assert as_it_is.total_bytes <= gpu(24).usable_bytes < planned.asked.total_bytes
    assert (mild.packing, mild.tokens) == ("int8", M)
    assert mild.times is not None


def test_where_no_packing_holds_it_all_the_longest_is_named() -> None:
    (only,) = make_plan(RELEASED, M, gpu(8)).nearest
    assert only.packing == "int4"
    assert 0 < only.tokens < M
    int4 = packed(RELEASED, "int4")
    assert int4 is not None
    sizes = footprint(int4, 2, 8192)
    assert sizes.total_bytes(only.tokens) <= gpu(8).usable_bytes + 1
    assert sizes.total_bytes(only.tokens + 1) >= gpu(8).usable_bytes


def test_nothing_fits() -> None:
    planned = make_plan(RELEASED, 1, gpu(2))
    assert (planned.fits, planned.nearest, planned.choice.longest_tokens) == (False, (), 0)


def test_positions_end_before_memory() -> None:
    planned = make_plan(LLAMA, 8193, gpu(8))
    assert planned.obstacle == "positions"
    assert [(near.packing, near.tokens) for near in planned.nearest] == [(None, 8192)]
    assert make_plan(LLAMA, 8192, gpu(8)).fits


def test_without_rates_there_are_no_times() -> None:
    planned = make_plan(RELEASED, M, gpu(24, None))
    assert planned.asked.times is None
    assert all(near.times is None for near in planned.nearest)


def test_what_is_packed_is_not_packed_again() -> None:
    int4 = packed(RELEASED, "int4")
    assert int4 is not None
    assert packed(int4, "int4") is None
    assert packed(LLAMA, "int4") is None
    assert [near.packing for near in make_plan(int4, M, gpu(8)).nearest] == [None]


@pytest.mark.parametrize("model", ["m2", "m4"])
def test_load_says_the_same(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import salalocal
    from salalocal.engine import engine as engine_module
    from salalocal.engine import load as load_module

    limit = 1 << 30
    monkeypatch.setattr(engine_module, "available_bytes", lambda _: limit)
    monkeypatch.setattr(load_module, "available_bytes", lambda _: limit)
    engine = salalocal.load(GOLDEN / model, device="cpu", dtype="float32")
    weights = make_plan(engine.config, 1, Place(False, 4, limit, None)).choice.sizes.weight_bytes
    planned = make_plan(engine.config, 1, Place(False, 4, limit + weights, None))
    assert planned.choice.longest_tokens == engine.max_context_tokens()
