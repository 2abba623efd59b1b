"""What a card has for K and V, and its shares, by hand for the released sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.choices import choose_tiered, packed
from salalocal.config import ModelConfig
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.hub import find_config
from salalocal.kv_tiers import Capped, Tiers, capped, kv_budget, least_kv_bytes, tiers, with_kv
from salalocal.planner import footprint, usable_gpu_bytes

RELEASED = ModelConfig.from_json(find_config("openbmb/MiniCPM-SALA"))


def test_a_budget_is_shared_out_by_hand() -> None:
    # A slot is 32 KiB, a page of both heads 64 KiB. All of it for the slots of 8 layers, and all of it for two buffers.
    assert tiers(RELEASED, 2, 384 << 20) == Tiers(slots=(384 << 20) // (8 << 15), staged_pages=3072)
    assert tiers(RELEASED, 2, 8 << 30) == Tiers(slots=(8 << 30) // (8 << 15), staged_pages=16384), "1 GiB at most"
    # Dense steps read 128 blocks of 2 heads in each layer; two buffers of 129 pages take less.
    least = 8 * 256 * (32 << 10)
    assert tiers(RELEASED, 2, least) == Tiers(slots=256, staged_pages=512)
    with pytest.raises(DoesNotFit) as caught:
        tiers(RELEASED, 2, least - 1)
    assert caught.value.needed_bytes == least


@given(
    budget=st.integers(0, 1 << 35), item_bytes=st.sampled_from([2, 4, 8]), kv=st.sampled_from(["full", "int8", "fp8"])
)
def test_no_share_exceeds_the_budget_or_is_too_small(budget: int, item_bytes: int, kv: str) -> None:
    least = 8 * 256 * 64 * 128 * 2 * item_bytes
    strip = 2 * 64 * 2 * (128 + 2)
    least += 0 if kv == "full" else 129 * strip
    if budget < least:
        with pytest.raises(DoesNotFit):
            tiers(RELEASED, item_bytes, budget, kv)
        return
    shares = tiers(RELEASED, item_bytes, budget, kv)
    slot = 64 * 128 * 2 * item_bytes
    assert max(8 * shares.slots, 4 * shares.staged_pages) * slot + shares.strip_pages * strip <= budget
    assert shares.slots >= 256
    assert shares.staged_pages >= 129
    assert (shares.strip_pages > 0) == (kv != "full")


def test_8_bits_in_host_memory_by_hand() -> None:
    """Of a token in 8 layers K and V of 2 heads, 128 bytes and 2 for the largest number; an eighth in reserve."""
    full = footprint(RELEASED, 2, 8192)
    assert full.host_token_bytes == 1.125 * 8 * 2 * 2 * 256
    for kv in ("int8", "fp8"):
        small = with_kv(RELEASED, full, kv)
        assert small.host_token_bytes == 1.125 * 8 * 2 * 2 * 130
        assert small.longest_tiered(1 << 40, 1 << 30) == int((1 << 30) / small.host_token_bytes)
        assert small.total_bytes(1000) == full.total_bytes(1000), "the device has them in full"
    assert with_kv(RELEASED, full, "full") == full
    shares = tiers(RELEASED, 2, 1 << 30, "int8")
    left = (1 << 30) - 512 * 2 * 16640
    assert shares == Tiers(slots=left // (8 << 15), staged_pages=left // (4 << 15), strip_pages=512)


def test_a_model_that_reads_everything_has_no_budget() -> None:
    with pytest.raises(InvalidRequest, match="sparse attention"):
        tiers(replace(RELEASED, mixer_types=("lightning",) * 32), 2, 1 << 30)


def test_a_million_tokens_on_a_card_of_8_gib() -> None:
    """In int4 beside weights, compressed keys, states and workspace; 24 GB hold all K/V."""
    config = packed(RELEASED, "int4")
    assert config is not None
    usable = usable_gpu_bytes(8 << 30)
    taken = capped(config, 2, usable)
    sizes, budget = taken.sizes, taken.kv_budget
    assert taken.chunk_tokens == 8192
    assert sizes.has_host_table
    assert capped(config, 2, 80 << 30) == Capped(8192, footprint(config, 2, 8192), None)
    assert budget == kv_budget(config, sizes, usable, 2 << 20), "compressed keys of two million have their room too"
    assert budget is not None
    assert budget > 512 << 20
    tiers(config, 2, budget)
    left = usable - sizes.weight_bytes - budget
    assert sizes.longest_tiered(left, 20 << 30) == 2 << 20
    assert sizes.longest_tiered(left, 5 << 30) < 1 << 20, "the host's memory may be what is short"
    assert capped(config, 2, usable, 1 << 20).kv_budget == kv_budget(config, sizes, usable)
    assert kv_budget(config, sizes, 24 << 30) is None
    assert kv_budget(RELEASED, footprint(RELEASED, 2, 8192), 8 << 30) == 0, "the weights alone do not fit"


@pytest.mark.parametrize(
    ("gib", "longest"),
    [(7.25, 1 << 20), (8, 2 << 20), (11.25, 2 << 20)],
)
def test_the_plan_has_the_room_that_load_makes(gib: float, longest: int) -> None:
    config = packed(RELEASED, "int4")
    assert config is not None
    usable = usable_gpu_bytes(int(gib * 2**30))
    choice, taken = choose_tiered(config, 2, usable, 64 << 30), capped(config, 2, usable)
    assert choice is not None
    assert (choice.longest_tokens, choice.kv_device_bytes) == (longest, taken.kv_budget)
    assert choice.device_bytes(longest) <= usable


def test_a_short_context_on_a_small_card() -> None:
    """Where a million tokens leave K and V nothing, they have what one step needs, and the context is shorter."""
    config = packed(RELEASED, "int4")
    assert config is not None
    leanest = footprint(config, 2, 2048, is_lean=True)
    fixed = leanest.weight_bytes + leanest.session_bytes + leanest.workspace_bytes + leanest.streaming_bytes
    least = least_kv_bytes(config, 2)
    usable = fixed + least + (100 << 20)
    assert capped(config, 2, usable) == Capped(2048, leanest, least)
    choice = choose_tiered(config, 2, usable, 64 << 30)
    assert choice is not None
    assert choice.longest_tokens == (100 << 20) // 360
    tiers(config, 2, least)
    assert capped(config, 2, usable, 1 << 20).kv_budget == 0, "a text of a million would leave nothing"
    assert choose_tiered(config, 2, fixed + least - 1, 64 << 30) is None
