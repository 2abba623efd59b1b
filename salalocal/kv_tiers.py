"""How much of a card is left for K and V, and what it holds where all of them are in host memory.

Knows sizes only: no torch, no files, no time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from salalocal.config import ModelConfig
from salalocal.errors import DoesNotFit, InvalidRequest
from salalocal.planner import Footprint, default_chunk, footprint

_LEAST_GPU_CHUNK_TOKENS = 2048
_AMPLE_KV_BYTES = 160 << 20
# What K/V is to have before compressed keys get more than those of LONG_CONTEXT_TOKENS.
_ENOUGH_KV_BYTES = 512 << 20
# No buffer is larger than what a bus brings in 20 ms.
_MOST_STAGED_BYTES = 1 << 30
# Pages of 8-bit codes that are on the device at once, on their way into a buffer: 16 MiB of the released model's.
_STRIP_PAGES = 512
# How K and V may be kept in host memory.
KV_KINDS = ("full", "int8", "fp8")
# What a card shared between K/V and compressed keys is to have room for, and at most where it is larger.
LONG_CONTEXT_TOKENS = 1 << 20
_LONGEST_CONTEXT_TOKENS = 1 << 21


def kv_budget(
    config: ModelConfig, sizes: Footprint, available_bytes: int, tokens: int = LONG_CONTEXT_TOKENS
) -> int | None:
    """What is left for K/V on a card beside weights and a long context.

    Args:
        config: the model.
        sizes: what it takes.
        available_bytes: for weights and caches.
        tokens: of the context.

    Returns:
        for `tiers`; None where all K/V of such a context fits, or the model reads all of it for every token.
    """
    if config.sparse is None or sizes.total_bytes(tokens) <= available_bytes:
        return None
    return max(0, available_bytes - sizes.tiered_bytes - sizes.compressed_bytes(tokens))


@dataclass(frozen=True)
class Capped:
    """How a model is taken on a capped card.

    Attributes:
        chunk_tokens: per prefill chunk.
        sizes: what it takes then.
        kv_budget: bytes there for K and V in host memory, as `kv_budget` says.
    """

    chunk_tokens: int
    sizes: Footprint
    kv_budget: int | None


def capped(
    config: ModelConfig,
    item_bytes: int,
    available_bytes: int,
    tokens: int | None = None,
    *,
    is_narrow: bool = False,
    kv: str = "full",
) -> Capped:
    """How `config` is taken on a card with so much for weights and caches, for a context of `tokens`.

    Where K/V of a long context fits beside them, all is as without a cap. Else the model is lean, and a chunk has fewer
    tokens where more would leave K/V hardly any room.

    Without `tokens` the context is one of a million; of two where that leaves K/V enough, and a shorter one where a
    million would leave less than a step needs.
    """
    chunk = default_chunk(config, on_gpu=True)
    sizes = footprint(config, item_bytes, chunk)
    if kv_budget(config, sizes, available_bytes, tokens or LONG_CONTEXT_TOKENS) is None:
        return Capped(chunk, sizes, None)
    while True:
        sizes = footprint(config, item_bytes, chunk, is_lean=True, is_narrow=is_narrow)
        # What K/V and compressed keys have together.
        shared = available_bytes - sizes.tiered_bytes
        longest = tokens or _longest_beside(_ENOUGH_KV_BYTES, shared, sizes)
        budget = max(0, shared - sizes.compressed_bytes(longest))
        if budget >= _AMPLE_KV_BYTES or chunk <= _LEAST_GPU_CHUNK_TOKENS:
            return Capped(chunk, sizes, budget if tokens else _or_least(budget, shared, config, item_bytes, kv))
        chunk //= 2


def _longest_beside(kv_bytes: int, shared_bytes: int, sizes: Footprint) -> int:
    """Tokens whose compressed keys leave K/V so much, within what a card is to have room for."""
    longest = int((shared_bytes - kv_bytes) / sizes.compressed_token_bytes) if sizes.compressed_token_bytes else 0
    return max(LONG_CONTEXT_TOKENS, min(_LONGEST_CONTEXT_TOKENS, longest))


def _or_least(budget: int, shared_bytes: int, config: ModelConfig, item_bytes: int, kv: str) -> int:
    """A budget that a step can do with, where there is as much."""
    least = least_kv_bytes(config, item_bytes, kv)
    return max(budget, least) if shared_bytes >= least else budget


@dataclass(frozen=True)
class Tiers:
    """What device memory for K/V holds where all of it is in host memory: slots while single tokens are read, and in
    the same place two buffers while chunks are.

    Attributes:
        slots: blocks of one kv head that each layer has on the device.
        staged_pages: blocks of all kv heads that each of the two buffers holds.
        strip_pages: those that are on the device at once in 8 bits; 0 where host memory has none.
    """

    slots: int
    staged_pages: int
    strip_pages: int = 0


def tiers(config: ModelConfig, item_bytes: int, kv_budget: int, kv: str = "full") -> Tiers:
    """What `kv_budget` bytes hold, of K/V that host memory has as `kv` says.

    Raises:
        InvalidRequest: the model has no sparse attention: every token reads everything, so all K/V must be there.
        DoesNotFit: the budget has no room for what one step reads.
    """
    heads, layers = config.num_key_value_heads, len(config.sparse_layers)
    least = least_tiers(config)
    if least is None:
        raise InvalidRequest("kv_budget is for models with sparse attention; this one reads all K/V for every token")
    needed = least_kv_bytes(config, item_bytes, kv)
    if kv_budget < needed:
        raise DoesNotFit(
            f"kv_budget is {kv_budget:,} bytes, and one step of this model reads {needed:,}; give it at least that",
            needed_bytes=needed,
            available_bytes=kv_budget,
        )
    slot_bytes = _slot_bytes(config, item_bytes)
    # Fewer only where more would leave too little for what they are on their way to.
    most_strips = max(least.staged_pages, (kv_budget - needed) // _strip_bytes(config))
    strips = 0 if kv == "full" else min(_STRIP_PAGES, most_strips)
    left = kv_budget - strips * _strip_bytes(config)
    staged = min(_MOST_STAGED_BYTES, left // 2) // (heads * slot_bytes)
    return Tiers(left // (layers * slot_bytes), staged, min(strips, staged))


def least_tiers(config: ModelConfig) -> Tiers | None:
    """What one step needs; None for a model whose every token reads all K/V."""
    sparse, heads = config.sparse, config.num_key_value_heads
    if sparse is None or not config.sparse_layers:
        return None
    # A dense step reads everything, a sparse one what it selects, and an append what windows reach back to.
    dense_blocks = -(-sparse.dense_len // sparse.block_size)
    reach = -(-8 * sparse.kernel_stride // sparse.block_size) + 1
    return Tiers(heads * max(sparse.selected_blocks, dense_blocks, reach), dense_blocks + 1)


def least_kv_bytes(config: ModelConfig, item_bytes: int, kv: str = "full") -> int:
    """Bytes of `least_tiers`, and of codes on their way; 0 where there are none."""
    least = least_tiers(config)
    if least is None:
        return 0
    buffers = 2 * least.staged_pages * config.num_key_value_heads
    strips = 0 if kv == "full" else min(least.staged_pages, _STRIP_PAGES)
    slots = max(len(config.sparse_layers) * least.slots, buffers)
    return slots * _slot_bytes(config, item_bytes) + strips * _strip_bytes(config)


def check_kv(kv: str) -> None:
    """Raises InvalidRequest unless `kv` is one of KV_KINDS."""
    if kv not in KV_KINDS:
        raise InvalidRequest(f"kv is {kv!r}; known are {', '.join(KV_KINDS)}")


def with_kv(config: ModelConfig, sizes: Footprint, kv: str) -> Footprint:
    """`sizes` where host memory keeps K/V as `kv`, of KV_KINDS, says."""
    return sizes if kv == "full" else replace(sizes, host_token_bytes=1.125 * host_token_bytes(config, 0, kv))


def host_token_bytes(config: ModelConfig, item_bytes: int, kv: str) -> float:
    """K and V of one token in host memory, in all layers."""
    plain = config.num_key_value_heads * config.sparse_head_dim * item_bytes
    return len(config.sparse_layers) * 2.0 * (plain if kv == "full" else _code_bytes(config))


def _slot_bytes(config: ModelConfig, item_bytes: int) -> int:
    return 2 * config.block_size * config.sparse_head_dim * item_bytes


def _strip_bytes(config: ModelConfig) -> int:
    """Of a block of all kv heads in 8 bits."""
    return 2 * config.block_size * _code_bytes(config)


def _code_bytes(config: ModelConfig) -> int:
    """Of a token's keys or values in 8 bits: a byte for each number, and two for the largest of each head."""
    return config.num_key_value_heads * (config.sparse_head_dim + 2)
