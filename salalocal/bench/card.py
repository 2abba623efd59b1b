"""What a GPU does without a model: copies, products, the way to main memory, our kernels at the released shapes.

Knows no files and no sessions. Everything is in bfloat16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from salalocal.bench.clock import Ceilings, measure_ceilings, milliseconds
from salalocal.bench.long_model import scoring_flop
from salalocal.bench.made_model import released_config
from salalocal.bench.scoring import scoring_seconds
from salalocal.bus_times import Bus
from salalocal.cache.attention_memory import Piece
from salalocal.cache.host_memory import HostMemory
from salalocal.cache.tiered_store import TieredStore
from salalocal.config import ModelConfig
from salalocal.machine import Hardware
from salalocal.model.pieces import attend_in_pieces
from salalocal.roofline import Bare, card_rates
from salalocal.times import Rates

_SCORED_TOKENS = 1 << 18
_ATTENDED_TOKENS = 1 << 20
_PIECES_TOKENS = 1 << 17
# Blocks of each kv head that a timed fetch brings: about as many as a step lacks, and all that it reads.
_FETCHED = (8, 96)
_FETCHED_SETS = 12
_KEPT_SETS = 4
_PIECES = (2, 10)
_PIECE_QUERIES = 2048
_LOCKED_BYTES = 1 << 30


@dataclass(frozen=True)
class KernelRates:
    """How fast our kernels are on a card, at the shapes of the released model.

    Attributes:
        row_bytes: a second, of all packed products of a step with one token.
        channels: a second, tokens x layers x width of all between large products and attention.
        attention_flop: a second, of a chunk's queries over replayed selections.
        scoring_flop: a second, of block scores, with the selection among them in the time.
    """

    row_bytes: float
    channels: float
    attention_flop: float
    scoring_flop: float


def measure_card(layer_chunk_seconds: float) -> tuple[Hardware, Rates]:
    """Measures the current GPU.

    Args:
        layer_chunk_seconds: what a layer of a small model takes for a chunk, for the rates.
    """
    ceilings = measure_ceilings()
    hardware = _hardware(ceilings)
    torch.cuda.empty_cache()
    config = released_config()
    kernels = measure_kernels(config)
    bus = _measure_bus(config, hardware)
    torch.cuda.empty_cache()
    if bus is not None:
        hardware = replace(hardware, gather_bytes_per_second=bus.gather_bytes)
    return hardware, rates_of(ceilings, kernels, bus, layer_chunk_seconds)


def rates_of(ceilings: Ceilings, kernels: KernelRates, bus: Bus | None, layer_chunk_seconds: float) -> Rates:
    """What predictions are made from: the card's own kernels, and what was not timed by its share of the ceilings."""
    flop = ceilings.flop_per_second
    narrow = {name: rate for name, rate in flop.items() if name in ("int8", "fp8")}
    known = card_rates(Bare(ceilings.copy_bytes_per_second, flop["bf16"], narrow, bus, layer_chunk_seconds))
    return replace(
        known,
        memory_bytes=kernels.row_bytes,
        channels=kernels.channels,
        dense_flop=kernels.attention_flop,
        sparse_flop=kernels.attention_flop,
        score_flop=kernels.scoring_flop,
    )


def _hardware(ceilings: Ceilings) -> Hardware:
    memory = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    pageable = torch.zeros(1 << 28, dtype=torch.uint8)
    pinned = pageable.pin_memory()
    slow = milliseconds(lambda: memory.copy_(pageable))
    back = milliseconds(lambda: pinned.copy_(memory, non_blocking=True))
    side = 8192
    a, b = torch.randn(1, side, device="cuda", dtype=torch.bfloat16), torch.randn(side, side, device="cuda").bfloat16()
    row = milliseconds(lambda: a @ b, turns=8)
    flop = ceilings.flop_per_second
    return Hardware(
        matmul_flop_per_second=flop["bf16"],
        copy_bytes_per_second=ceilings.copy_bytes_per_second,
        read_bytes_per_second=b.nbytes / row * 1e3,
        pinned_bytes_per_second=ceilings.host_bytes_per_second,
        pageable_bytes_per_second=pageable.numel() / slow * 1e3,
        written_bytes_per_second=pinned.numel() / back * 1e3,
        int8_flop_per_second=flop.get("int8"),
        fp8_flop_per_second=flop.get("fp8"),
    )


def measure_kernels(config: ModelConfig) -> KernelRates:
    """Times the kernels that a step and a chunk spend most of their time in."""
    from salalocal_kernels.gpu.bench import lightning, packed, sparse

    sparse_layers, lightning_layers = len(config.sparse_layers), len(config.lightning_layers)
    layers = config.num_hidden_layers
    # Packed products of a step: how often, and which.
    often = {
        "int4 gate and up, 4096 to 16384": layers,
        "int4 4096 x 16384": layers,
        "int4 4096 x 4096": layers,
        "lightning q, k, v int4, z int8": lightning_layers,
        "sparse q, k, v, gate int8": sparse_layers,
        "head int8": 1,
    }
    moved = seconds = 0.0
    for case in packed.rows():
        if count := often.get(case.shape):
            moved += count * case.bytes_moved
            seconds += count * milliseconds(case.call, case.turns) / 1e3
    torch.cuda.empty_cache()
    attended = sparse.attending(_ATTENDED_TOKENS, "replayed")[0]
    attention = milliseconds(attended.call) / 1e3
    torch.cuda.empty_cache()
    around = lightning.around(8192)
    between = packed.between(8192)
    beside = lightning_layers * milliseconds(around.call) / 1e3
    for case, count in zip(between, (2 * layers, layers), strict=True):
        beside += count * milliseconds(case.call) / 1e3
    return KernelRates(
        row_bytes=moved / seconds,
        channels=8192 * layers * config.hidden_size / beside,
        attention_flop=attended.flop / attention,
        scoring_flop=scoring_flop(config) / scoring_seconds(config, _SCORED_TOKENS),
    )


def _measure_bus(config: ModelConfig, hardware: Hardware) -> Bus | None:
    """None where CUDA does not register main memory."""
    device = torch.device("cuda")
    few, many = (_fetch_seconds(config, count, device) for count in _FETCHED)
    if few is None or many is None:
        return None
    assert hardware.pinned_bytes_per_second is not None
    assert hardware.written_bytes_per_second is not None
    block_bytes = 2 * config.block_size * config.sparse_head_dim * 2
    less, more = (count * config.num_key_value_heads * block_bytes for count in _FETCHED)
    gather = (more - less) / max(many - few, 1e-9)
    return Bus(
        read_bytes=hardware.pinned_bytes_per_second,
        write_bytes=hardware.written_bytes_per_second,
        gather_bytes=gather,
        fetch_seconds=max(0.0, few - less / gather),
        piece_token_seconds=_piece_token_seconds(config, device),
        lock_byte_seconds=_lock_byte_seconds(config, device),
    )


def _lock_byte_seconds(config: ModelConfig, device: torch.device) -> float:
    layers, heads, dim = len(config.sparse_layers), config.num_key_value_heads, config.sparse_head_dim
    memory = HostMemory(layers, (heads, 2, config.block_size, dim), torch.bfloat16, device)
    memory.reserve(_LOCKED_BYTES // memory.page_bytes)
    return memory.pin_seconds / (memory.capacity * memory.page_bytes)


def _fetch_seconds(config: ModelConfig, blocks: int, device: torch.device) -> float | None:
    """Seconds of `fetch_blocks` where of each kv head so many blocks are asked for and none is there."""
    heads, dim, block = config.num_key_value_heads, config.sparse_head_dim, config.block_size
    pages = _FETCHED_SETS * blocks
    # In turn, each set has been given up for others by the time it is asked for again.
    slots = _KEPT_SETS * heads * blocks
    store = TieredStore(1, heads, dim, block, torch.bfloat16, device, slots, staged_pages=1)
    store.reserve(pages)
    layer, slot_table = store.layer(0), store.slot_table(pages)
    if not layer.host.is_readable:
        return None
    table = torch.randperm(pages, device=device)
    sets = torch.randperm(pages, device=device).view(_FETCHED_SETS, blocks).sort().values.int()

    def fetch(asked: Tensor) -> None:
        layer.fetch(asked, table, pages * block, slot_table)

    call = _in_turn([asked.expand(heads, blocks).contiguous() for asked in sets], fetch)
    return milliseconds(call, turns=_FETCHED_SETS) / 1e3


def _piece_token_seconds(config: ModelConfig, device: torch.device) -> float:
    """What a piece more costs a token, in a context that stays the same."""
    from salalocal_kernels.gpu.bench.selections import REPLAYED_SHARE, selection

    heads, dim, block = config.num_key_value_heads, config.sparse_head_dim, config.block_size
    first = _PIECES_TOKENS - _PIECE_QUERIES
    count = _PIECES_TOKENS // block
    q = torch.randn(_PIECE_QUERIES, config.num_attention_heads, dim, device=device, dtype=torch.bfloat16)
    pages = torch.randn(count, heads, 2, block, dim, device=device, dtype=torch.bfloat16)
    picked = selection(first, _PIECE_QUERIES, REPLAYED_SHARE, heads).to(device)
    few, many = (
        milliseconds(lambda cut=_cut(pages, number): attend_in_pieces(q, picked, cut, first, dim**-0.5)) / 1e3  # type: ignore[misc]
        for number in _PIECES
    )
    return max(0.0, many - few) / (_PIECES[1] - _PIECES[0]) / _PIECE_QUERIES


def _cut(pages: Tensor, number: int) -> list[Piece]:
    """The pages in so many pieces."""
    table = torch.arange(len(pages), device=pages.device)
    size = -(-len(pages) // number)
    spans = [(at, min(at + size, len(pages))) for at in range(0, len(pages), size)]
    return [Piece(pages[start:stop], table - start, start, stop, is_whole=False) for start, stop in spans]


def _in_turn(items: list[Tensor], call: Callable[[Tensor], object]) -> Callable[[], object]:
    following = itertools.cycle(items)
    return lambda: call(next(following))
