"""How long K and V in main memory keep a card waiting: history over the bus for chunks, blocks fetched for steps.

Pure arithmetic: no torch, no files, no clock.

A chunk reads the whole history once per sparse layer: so many tokens select so much that next to nothing of it is left
out. What two buffers hold is on its way from the end of the sparse layer before, or of the first one's own products,
until the layer has scored; the rest comes while it attends, and what is then still to come is waited for. Every piece
of the history costs launches of its own besides. Before all that the memory is page-locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from salalocal.config import ModelConfig

# Of the blocks that a step selects freely, those that the step before selected too: a published figure for a similar
# model, which `bench long` replays.
ASSUMED_HIT_RATE = 0.87
# A token's fetches in a layer: the blocks that it is written to, and those that it reads.
_FETCHES = 2


@dataclass(frozen=True)
class Bus:
    """What goes between main memory and a card.

    Attributes:
        read_bytes, write_bytes: a second, by copies of page-locked memory to the card and from it.
        gather_bytes: a second, by the kernel that fetches single blocks.
        fetch_seconds: of such a fetch besides its bytes.
        piece_token_seconds: of one token in one piece of a history that comes in pieces, besides what attention in one
            piece takes: launches, adding up.
        lock_byte_seconds: of clearing and page-locking a byte of main memory, which a process does once.
    """

    read_bytes: float
    write_bytes: float
    gather_bytes: float
    fetch_seconds: float
    piece_token_seconds: float
    lock_byte_seconds: float


@dataclass(frozen=True)
class Away:
    """K and V in main memory, and what of them is on the card.

    Attributes:
        token_bytes: K and V of one token in all layers, as they pass the bus.
        staged_blocks: blocks of all kv heads that each of two buffers holds.
        slots: blocks of one kv head that a layer has on the card.
        hit_rate: of the blocks that a step selects freely, those that are on the card, where not all are.
    """

    token_bytes: float
    staged_blocks: int
    slots: int
    hit_rate: float = ASSUMED_HIT_RATE


def waiting_seconds(
    config: ModelConfig,
    bus: Bus,
    away: Away,
    tokens: int,
    chunk_tokens: int,
    other_seconds: float,
    score_seconds: float,
    attention_seconds: float,
) -> float:
    """Seconds that reading a process's first prompt takes longer than with all K and V on the card.

    Args:
        config: with sparse attention.
        bus: of the machine.
        away: where K and V are.
        tokens: of the prompt.
        chunk_tokens: read at once.
        other_seconds: of one token, of everything but sparse attention.
        score_seconds: of one token on the average, of scores and selection.
        attention_seconds: of one token, of attention to selected blocks.
    """
    layers, block = len(config.sparse_layers), config.block_size
    staged = 2 * away.staged_blocks * block * away.token_bytes / layers / bus.read_bytes
    # Layers between each sparse one and the one before; nothing is asked for before the first.
    apart = [0, *(after - before for before, after in pairwise(config.sparse_layers))]
    total = tokens * away.token_bytes * bus.lock_byte_seconds
    for start in range(0, tokens, chunk_tokens):
        chunk = min(chunk_tokens, tokens - start)
        over_bus = start * away.token_bytes / layers / bus.read_bytes
        scored = score_seconds * ((start + chunk) ** 2 - start**2) / tokens / layers
        attended, layer = chunk * attention_seconds / layers, chunk * other_seconds / config.num_hidden_layers
        pieces = _pieces(start + chunk, start, block, away)
        # In one piece it is all there before the layer attends.
        beside = attended if pieces else 0.0
        late = sum(max(0.0, over_bus - min(staged, count * layer + scored) - beside) for count in apart)
        computed = chunk * other_seconds + layers * (scored + attended)
        total += max(late, chunk * away.token_bytes / bus.write_bytes - computed)
        total += layers * pieces * chunk * bus.piece_token_seconds
    return total


def fetching_seconds(config: ModelConfig, bus: Bus, away: Away, tokens: int) -> float:
    """Seconds that a step after `tokens` takes longer than with all K and V on the card."""
    layers = len(config.sparse_layers)
    missing = missing_blocks(config, away, tokens)
    block_bytes = away.token_bytes * config.block_size / (layers * config.num_key_value_heads)
    return _FETCHES * layers * bus.fetch_seconds + missing * block_bytes / bus.gather_bytes


def missing_blocks(config: ModelConfig, away: Away, tokens: int) -> float:
    """Blocks of one kv head that a step after `tokens` fetches, in all layers.

    Those at the beginning of the text and in the local window are never away.
    """
    assert config.sparse is not None
    blocks = -(-tokens // config.block_size)
    if away.slots >= blocks * config.num_key_value_heads:
        return 0.0
    free = config.sparse.topk - config.sparse.init_blocks
    return (1 - away.hit_rate) * free * config.num_key_value_heads * len(config.sparse_layers)


def _pieces(length: int, history: int, block: int, away: Away) -> int:
    """Pieces that a chunk attends to, its own tokens one of them; none where the whole context is one."""
    if -(-length // block) <= away.staged_blocks:
        return 0
    return -(-(history // block) // away.staged_blocks) + 1
