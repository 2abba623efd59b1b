"""Puts sizes and times together: does a context fit, what is the nearest that does, how long will it take.

Pure arithmetic over `choices`, `kv_tiers`, `times` and `saved_size`: no torch, no files. `load` asks the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from salalocal import times
from salalocal.bus_times import Away
from salalocal.choices import Choice, choose, choose_tiered, packed
from salalocal.config import ModelConfig
from salalocal.errors import InvalidRequest
from salalocal.kv_tiers import LONG_CONTEXT_TOKENS, Tiers, host_token_bytes, kv_budget, tiers
from salalocal.planner import default_chunk, footprint, usable_gpu_bytes
from salalocal.saved_size import saved_bytes
from salalocal.times import Rates, Times

# Caps that people type.
_CAP_STEP = 1 << 28


@dataclass(frozen=True)
class Setting:
    """A way to run a model, and what comes of it.

    Attributes:
        packing: "int8" or "int4" where the model has to be packed first; None leaves it as it is.
        tokens: of context.
        total_bytes: weights and one session, on the device it runs on.
        times: None without measured rates; where K and V are in main memory, without those of the bus.
        saved_bytes: of the session on the disk, where it is saved.
        gpu_memory: the cap that puts K and V in main memory, where they would be on the device; None: as asked.
        host_bytes: K and V in main memory; 0 where they are on the device.
    """

    packing: Literal["int8", "int4"] | None
    tokens: int
    total_bytes: int
    times: Times | None
    saved_bytes: int
    gpu_memory: int | None = None
    host_bytes: int = 0


@dataclass(frozen=True)
class Place:
    """Where a model is to run.

    Attributes:
        on_gpu: on a GPU; else on the processor.
        item_bytes: of activations, K/V and plain weights there.
        usable_bytes: for weights and caches.
        rates: measured there; None without them.
        host_bytes: of main memory, for K and V that do not fit on a GPU under a cap; None where they must.
        prefill: "full", or the 8-bit format that long chunks multiply packed matrices in.
        kv: how K and V are kept in main memory, as `load`'s.
    """

    on_gpu: bool
    item_bytes: int
    usable_bytes: int
    rates: Rates | None
    host_bytes: int | None = None
    prefill: str = "full"
    kv: str = "full"


@dataclass(frozen=True)
class Plan:
    """The answer to: can this model read so many tokens here, and how long does it take.

    Attributes:
        asked: the model as it is with the tokens asked for, whether it fits or not.
        choice: its sizes.
        obstacle: what it fails at, memory or the trained positions of RoPE; None where it fits.
        nearest: settings that fit, best first; empty where it fits by itself, or nothing does.
    """

    asked: Setting
    choice: Choice
    obstacle: Literal["memory", "positions"] | None
    nearest: tuple[Setting, ...]

    @property
    def fits(self) -> bool:
        """Whether `load` and a session of so many tokens succeed."""
        return self.obstacle is None

    def parts(self) -> dict[str, int]:
        """Bytes on the device by what they are for; they add up to `asked.total_bytes`."""
        sizes, tokens, pool = self.choice.sizes, self.asked.tokens, self.choice.kv_device_bytes
        return {
            "weights": sizes.weight_bytes,
            "keys_and_values": sizes.kv_bytes(tokens) if pool is None else pool,
            "compressed_keys": sizes.compressed_bytes(tokens),
            "linear_states": sizes.session_bytes,
            "workspace": sizes.workspace_bytes + (0 if pool is None else sizes.streaming_bytes),
        }

    @property
    def host_bytes(self) -> int:
        """Bytes of K and V in main memory, beside a GPU that has no room for them."""
        return self.choice.host_bytes(self.asked.tokens)


def make_plan(config: ModelConfig, tokens: int, place: Place) -> Plan:
    """Plans a session of `tokens` tokens of `config`.

    Settings near it are the longest context that fits as the model is, a cap under which a longer one does, and the
    mildest packing that fits them all or else the one that fits most.

    Raises:
        InvalidRequest: the place keeps K and V in 8 bits, and they would not be in main memory.
    """
    choice = _choose(config, place)
    _check_kv(choice, place)
    asked = _setting(choice, None, tokens, place)
    if choice.longest_tokens >= tokens:
        return Plan(asked, choice, None, ())
    trained = config.rope_positions
    obstacle: Literal["memory", "positions"] = "memory"
    if trained is not None and tokens > trained and asked.total_bytes <= place.usable_bytes:
        obstacle = "positions"
    nearest = [_setting(choice, None, choice.longest_tokens, place)] if choice.longest_tokens else []
    best = choice.longest_tokens
    lower = under_a_cap(config, place)
    if lower is not None:
        cap, other_place = lower
        other = _choose(config, other_place)
        if other.longest_tokens > best:
            best = other.longest_tokens
            nearest.append(replace(_setting(other, None, min(best, tokens), other_place), gpu_memory=cap))
    added: Setting | None = None
    for packing in ("int8", "int4"):
        smaller = packed(config, packing)
        if smaller is None or best >= tokens:
            continue
        other = _choose(smaller, place)
        if other.longest_tokens > best:
            best = other.longest_tokens
            added = _setting(other, packing, min(best, tokens), place)
    return Plan(asked, choice, obstacle, (*nearest, *([added] if added else [])))


def under_a_cap(config: ModelConfig, place: Place) -> tuple[int, Place] | None:
    """The largest cap under which `load` puts K and V in main memory, and the place that it makes of this one.

    None where they cannot be there, or are already.
    """
    sizes = footprint(config, place.item_bytes, default_chunk(config, on_gpu=True))
    needed = sizes.total_bytes(LONG_CONTEXT_TOKENS)
    if place.host_bytes is None or place.usable_bytes < needed:
        return None
    cap = place.usable_bytes * 2 // _CAP_STEP * _CAP_STEP
    while usable_gpu_bytes(cap) >= needed:
        cap -= _CAP_STEP
    return (cap, replace(place, usable_bytes=usable_gpu_bytes(cap))) if cap > 0 else None


def _choose(config: ModelConfig, place: Place) -> Choice:
    """As `load` does: with everything on the device, or under a cap K and V in main memory, also of short contexts."""
    resident = choose(config, place.item_bytes, place.usable_bytes, on_gpu=place.on_gpu)
    if place.host_bytes is None:
        return resident
    tiered = choose_tiered(
        config,
        place.item_bytes,
        place.usable_bytes,
        place.host_bytes,
        place.kv,
        is_narrow=_prefill(config, place) != "full",
    )
    return resident if tiered is None else tiered


def _check_kv(choice: Choice, place: Place) -> None:
    """As `load` refuses, which puts K and V in main memory where those of a long context would not fit."""
    if place.kv == "full":
        return
    if place.host_bytes is None or kv_budget(choice.config, choice.sizes, place.usable_bytes) is None:
        lower = under_a_cap(choice.config, place)
        cap = "a smaller gpu_memory" if lower is None else f"a gpu_memory of {lower[0] / 2**30:g}GiB or less"
        raise InvalidRequest(
            f"kv in {place.kv} is for K and V in main memory, and `load` keeps them on the device here: give {cap}, or "
            "leave kv out"
        )


def _setting(choice: Choice, packing: Literal["int8", "int4"] | None, tokens: int, place: Place) -> Setting:
    saved = saved_bytes(choice.config, place.item_bytes, tokens)
    device, host = choice.device_bytes(tokens), choice.host_bytes(tokens)
    return Setting(packing, tokens, device, _expected(choice, tokens, place), saved, host_bytes=host)


def _expected(choice: Choice, tokens: int, place: Place) -> Times | None:
    rates, config = place.rates, choice.config
    is_away = choice.kv_device_bytes is not None
    if rates is None or (is_away and rates.bus is None):
        return None
    away = None
    if choice.kv_device_bytes is not None:
        shares = tiers(config, place.item_bytes, choice.kv_device_bytes, place.kv)
        away = kv_away(config, place.item_bytes, shares, place.kv)
    return times.predict(
        config, rates, tokens, choice.chunk_tokens, place.item_bytes,
        unpacked=choice.unpacks, prefill=_prefill(config, place), away=away,
    )  # fmt: skip


def _prefill(config: ModelConfig, place: Place) -> str:
    return "full" if config.quantization is None else place.prefill


def kv_away(config: ModelConfig, item_bytes: int, shares: Tiers, kv: str = "full") -> Away:
    """K and V in main memory, kept as `kv` says, with these shares of the device."""
    return Away(host_token_bytes(config, item_bytes, kv), shares.staged_pages, shares.slots)
