"""In which form a model is taken into memory, and how long a session it then has.

Packed or not, with K and V on the device or in host memory. Knows sizes only: no torch, no files, no time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from salalocal.config import ModelConfig
from salalocal.kv_tiers import capped, least_kv_bytes, with_kv
from salalocal.planner import Footprint, default_chunk, footprint
from salalocal.quantization import best_group_size, recipe


@dataclass(frozen=True)
class Choice:
    """A model with its numbers in one format, and the longest session it then has.

    Attributes:
        config: with the packing of this choice.
        sizes: what it takes.
        chunk_tokens: per prefill chunk.
        unpacks: packed weights are turned into plain ones when they are read.
        longest_tokens: by memory and by the trained length of RoPE attention; 0 where not even the weights fit.
        kv_device_bytes: where K and V are in main memory, what the device has for them; None where they are on the
            device.
    """

    config: ModelConfig
    sizes: Footprint
    chunk_tokens: int
    unpacks: bool
    longest_tokens: int
    kv_device_bytes: int | None = None

    def device_bytes(self, tokens: int) -> int:
        """Bytes on the device of the weights and a session of so many tokens."""
        if self.kv_device_bytes is None:
            return self.sizes.total_bytes(tokens)
        return self.sizes.tiered_bytes + self.kv_device_bytes + self.sizes.compressed_bytes(tokens)

    def host_bytes(self, tokens: int) -> int:
        """Bytes of K and V in main memory, where they are there."""
        return 0 if self.kv_device_bytes is None else int(self.sizes.host_token_bytes * tokens)


def choose_packing(
    config: ModelConfig, item_bytes: int, chunk_tokens: int, available_bytes: int, *, on_gpu: bool
) -> tuple[Footprint, bool]:
    """What the model takes, and whether its packed weights are unpacked when they are read.

    Both ways compute the same. A product with one token takes a CPU 6 to 10 times as long from int4 and 2 to 4 times
    from int8 as from plain numbers; a whole decode step of a small model 3.5 and 2 times.
    """
    if config.quantization is not None and not on_gpu:
        unpacked = footprint(config, item_bytes, chunk_tokens, unpack=True)
        if unpacked.total_bytes(0) <= available_bytes:
            return unpacked, True
    return footprint(config, item_bytes, chunk_tokens), False


def choose(config: ModelConfig, item_bytes: int, available_bytes: int, *, on_gpu: bool) -> Choice:
    """How `load` would take `config` into `available_bytes`."""
    chunk = default_chunk(config, on_gpu=on_gpu)
    sizes, unpacks = choose_packing(config, item_bytes, chunk, available_bytes, on_gpu=on_gpu)
    longest = sizes.longest_context(available_bytes - sizes.weight_bytes)
    trained = config.rope_positions
    return Choice(config, sizes, chunk, unpacks, longest if trained is None else min(longest, trained))


def choose_tiered(
    config: ModelConfig,
    item_bytes: int,
    available_bytes: int,
    host_bytes: int,
    kv: str = "full",
    *,
    is_narrow: bool = False,
) -> Choice | None:
    """How `load` would take `config` under a cap with K and V in main memory, of which `host_bytes` are free.

    None where that is not to be had, or where `load` keeps them on the device.
    """
    taken = capped(config, item_bytes, available_bytes, is_narrow=is_narrow, kv=kv)
    least, budget = least_kv_bytes(config, item_bytes, kv), taken.kv_budget
    if budget is None or not least or budget < least:
        return None
    sizes = with_kv(config, taken.sizes, kv)
    choice = Choice(config, sizes, taken.chunk_tokens, False, 0, budget)
    left = available_bytes - choice.device_bytes(0)
    longest = int(min(left / sizes.compressed_token_bytes, host_bytes / sizes.host_token_bytes))
    trained = config.rope_positions
    return replace(choice, longest_tokens=longest if trained is None else min(longest, trained))


def packed(config: ModelConfig, name: Literal["int4", "int8"]) -> ModelConfig | None:
    """`config` as `quantize` packs it; None where it does not: it is packed already, or no folder of safetensors."""
    if config.quantization is not None or config.model_type != "minicpm_sala":
        return None
    columns = config.matrix_columns
    return replace(config, quantization=recipe(name, columns, best_group_size(columns.values()), zero_point=False))


def mildest_packing(
    config: ModelConfig, item_bytes: int, chunk_tokens: int, available_bytes: int
) -> Literal["int8", "int4"] | None:
    """How the weights would have to be packed for an empty session to fit; None where nothing helps."""
    packings: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
    for name in packings:
        smaller = packed(config, name)
        if smaller is not None and footprint(smaller, item_bytes, chunk_tokens).total_bytes(0) <= available_bytes:
            return name
    return None
