"""How long reading and answering take, from the sizes of a model and what a machine was measured to do.

Pure arithmetic: no torch, no files, no clock. Seconds to the first token are a sum of four parts, of which two grow
with the tokens and two with their square:

    linear     2 FLOP per token and weight, at the rate of a large product
    layers     norms, gates, linear attention: per token, layer and channel
    attention  4 d FLOP per query head and token that is attended to; sparse layers attend to as many as they select
    scoring    2 d FLOP per query head and compressed key, the selection among them counted in

What K and V in main memory add is `bus_times`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from salalocal import bus_times
from salalocal.bus_times import Away, Bus
from salalocal.config import ModelConfig
from salalocal.weights.layout import module_bytes, modules

_LEAST = 1e-18
# Matrices that prefill in 8 bits leave as they are.
_ENDS = ("embed_tokens", "lm_head")
_SELECTING = ("sparse.q_proj", "sparse.k_proj")


@dataclass(frozen=True)
class Work:
    """What some tokens ask of a machine, in units that rates are known for.

    Attributes:
        linear_flop: products with weight matrices, the head left out.
        narrow_flop: of these, what prefill in 8 bits multiplies in them.
        channels: tokens x layers x width.
        dense_flop, sparse_flop: attention to all tokens, or to selected blocks.
        score_flop: queries with compressed keys.
    """

    linear_flop: float
    channels: float
    dense_flop: float
    sparse_flop: float
    score_flop: float
    narrow_flop: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and what a layer costs it besides.

    Attributes:
        matmul_flop: of a large product in the dtype that models run in.
        memory_bytes: bytes read by one token's products.
        channels: tokens x layers x width of everything in a layer but its large products and attention.
        dense_flop, sparse_flop, score_flop: as in `Work`.
        layer_step_seconds: of one layer and one token, besides its bytes.
        layer_chunk_seconds: the least that one layer of a chunk takes, however little is computed.
        narrow_flop: of large products by 8-bit format, "int8" and "fp8", of those that the machine has.
        bus: to main memory; None without a GPU.
    """

    matmul_flop: float
    memory_bytes: float
    channels: float
    dense_flop: float
    sparse_flop: float
    score_flop: float
    layer_step_seconds: float
    layer_chunk_seconds: float = 0.0
    narrow_flop: Mapping[str, float] = field(default_factory=dict)
    bus: Bus | None = None


@dataclass(frozen=True)
class Chunk:
    """A stretch of reading that was timed: `tokens` from position `start`, with or without block selection."""

    start: int
    tokens: int
    is_sparse: bool
    seconds: float


@dataclass(frozen=True)
class Step:
    """One token that was timed after `tokens` others: bytes per element, and whether weights were plain in memory."""

    tokens: int
    seconds: float
    item_bytes: int
    unpacked: bool


@dataclass(frozen=True)
class Times:
    """What is to be expected.

    Attributes:
        first_token_seconds: reading everything.
        tokens_per_second: of the answer after it.
    """

    first_token_seconds: float
    tokens_per_second: float


def is_sparse(config: ModelConfig, tokens: int) -> bool:
    """Whether a prompt of `tokens` is read with block selection."""
    return config.sparse is not None and tokens >= config.sparse.dense_len


def work(config: ModelConfig, start: int, stop: int, *, sparse: bool) -> Work:
    """The work of reading tokens [start, stop).

    Args:
        config: the model.
        start, stop: positions.
        sparse: the attention layers select blocks.
    """
    tokens = stop - start
    matrices = sum(
        prod(module.shape) for module in modules(config) if module.kind is not None and module.kind not in _ENDS
    )
    per_pair = 4 * config.num_attention_heads * config.sparse_head_dim * len(config.sparse_layers)
    dense_flop = sparse_flop = score_flop = 0.0
    if sparse and config.sparse is not None:
        seen = config.sparse.selected_blocks * config.sparse.block_size
        sparse_flop = float(per_pair * _pairs(start, stop, seen))
        keys_per_token = 1.25 / config.sparse.kernel_stride
        score_flop = per_pair / 2 * _pairs(start, stop, stop) * keys_per_token
    else:
        dense_flop = float(per_pair * _pairs(start, stop, stop))
    return Work(
        linear_flop=2.0 * matrices * tokens,
        channels=float(tokens * config.num_hidden_layers * config.hidden_size),
        dense_flop=dense_flop,
        sparse_flop=sparse_flop,
        score_flop=score_flop,
        narrow_flop=2.0 * _narrow_weights(config) * tokens,
    )


def _narrow_weights(config: ModelConfig) -> int:
    if config.quantization is None:
        return 0
    formats = config.quantization.formats
    kinds = {kind for kind, format in formats if format != "bf16"} - {*_ENDS, *_SELECTING}
    return sum(prod(module.shape) for module in modules(config) if module.kind in kinds)


def _pairs(start: int, stop: int, most: int) -> int:
    """Sum over positions p of [start, stop) of min(p + 1, most)."""

    def upto(end: int) -> int:
        rising = min(end, most)
        return rising * (rising + 1) // 2 + (end - rising) * most

    return upto(stop) - upto(start)


def step_bytes(config: ModelConfig, tokens: int, item_bytes: int, *, unpacked: bool) -> int:
    """Bytes that one step after `tokens` reads: weights, states (written too), K/V blocks, compressed keys.

    Args:
        config: the model.
        tokens: in the session.
        item_bytes: of activations, K/V and plain weights.
        unpacked: packed weights were turned into plain ones.
    """
    weights = sum(
        prod(module.shape) * item_bytes if unpacked else module_bytes(module, config, item_bytes)
        for module in modules(config)
        if module.kind != "embed_tokens" or config.tie_word_embeddings
    )
    state = config.num_attention_heads * config.head_dim**2 * max(item_bytes, 4)
    channels = config.num_key_value_heads * config.sparse_head_dim * item_bytes
    seen, keys = tokens, 0.0
    if config.sparse is not None and is_sparse(config, tokens):
        seen = min(tokens, config.sparse.selected_blocks * config.sparse.block_size)
        keys = tokens * 1.25 / config.sparse.kernel_stride
    attention = len(config.sparse_layers) * channels * (2 * seen + keys)
    return int(weights + 2 * len(config.lightning_layers) * state + attention)


def prefill_seconds(
    config: ModelConfig,
    rates: Rates,
    tokens: int,
    chunk_tokens: int,
    item_bytes: int,
    *,
    unpacked: bool,
    prefill: str = "full",
    away: Away | None = None,
) -> float:
    """Seconds to read a prompt of `tokens`; arguments and errors as for `predict`."""
    asked = work(config, 0, tokens, sparse=is_sparse(config, tokens))
    chunks = -(-tokens // chunk_tokens)
    linear = asked.linear_flop / rates.matmul_flop
    if prefill != "full":
        narrow = asked.narrow_flop
        linear = (asked.linear_flop - narrow) / rates.matmul_flop + narrow / rates.narrow_flop[prefill]
    seen = asked.sparse_flop / rates.sparse_flop
    other = linear + asked.channels / rates.channels + asked.dense_flop / rates.dense_flop
    score = asked.score_flop / rates.score_flop
    if config.quantization is not None and not unpacked:
        # Packed matrices are unpacked for every chunk: read packed, written and read again plain.
        packed = sum(module_bytes(module, config, item_bytes) for module in modules(config))
        plain = sum(prod(module.shape) for module in modules(config)) * item_bytes
        other += chunks * (packed + 2 * plain) / rates.memory_bytes
    seconds = max(other + score + seen, chunks * config.num_hidden_layers * rates.layer_chunk_seconds)
    if away is None:
        return seconds
    assert rates.bus is not None
    return seconds + bus_times.waiting_seconds(
        config, rates.bus, away, tokens, chunk_tokens, other / tokens, score / tokens, seen / tokens
    )


def predict(
    config: ModelConfig,
    rates: Rates,
    tokens: int,
    chunk_tokens: int,
    item_bytes: int,
    *,
    unpacked: bool,
    prefill: str = "full",
    away: Away | None = None,
) -> Times:
    """What `config` takes on a machine of these `rates`.

    Args:
        config: the model, packed or not.
        rates: of the machine.
        tokens: of the prompt.
        chunk_tokens: read at once.
        item_bytes: of activations, K/V and plain weights.
        unpacked: packed weights were turned into plain ones at load.
        prefill: "full", or an 8-bit format of `rates.narrow_flop`.
        away: where K and V are, in main memory; `rates.bus` is known then. None: on the device.
    """
    moved = step_bytes(config, tokens, item_bytes, unpacked=unpacked)
    step = moved / rates.memory_bytes + config.num_hidden_layers * rates.layer_step_seconds
    if away is not None:
        assert rates.bus is not None
        step += bus_times.fetching_seconds(config, rates.bus, away, tokens)
    first = prefill_seconds(
        config, rates, tokens, chunk_tokens, item_bytes, unpacked=unpacked, prefill=prefill, away=away
    )
    return Times(first, 1 / step)


def fit(
    config: ModelConfig,
    chunks: Mapping[str, Chunk],
    matmul_flop: float,
    memory_bytes: float,
    step: Step,
) -> Rates:
    """Rates from timed stretches of one model.

    Args:
        config: the model that was timed.
        chunks: "first" at position 0, "middle" and "far" with blocks selected from a full context, "dense" without.
        matmul_flop, memory_bytes: of the machine.
        step: one token of the answer.

    A part that came out at nothing, the clock being coarser than it, is taken to be very quick.
    """
    asked = {name: _work_of(config, chunk) for name, chunk in chunks.items()}
    first, middle, far = (chunks[name].seconds for name in ("first", "middle", "far"))
    score = _over(far - middle, asked["far"].score_flop - asked["middle"].score_flop)
    sparse = _over(
        middle - first - score * (asked["middle"].score_flop - asked["first"].score_flop),
        asked["middle"].sparse_flop - asked["first"].sparse_flop,
    )
    base = first - score * asked["first"].score_flop - sparse * asked["first"].sparse_flop
    base = max(base, _LEAST)
    dense = _over(chunks["dense"].seconds - base, asked["dense"].dense_flop)
    channel = _over(base - asked["first"].linear_flop / matmul_flop, asked["first"].channels)
    reading = step_bytes(config, step.tokens, step.item_bytes, unpacked=step.unpacked) / memory_bytes
    return Rates(
        matmul_flop=matmul_flop,
        memory_bytes=memory_bytes,
        channels=1 / channel,
        dense_flop=1 / dense,
        sparse_flop=1 / sparse,
        score_flop=1 / score,
        layer_step_seconds=max(0.0, step.seconds - reading) / config.num_hidden_layers,
    )


def _work_of(config: ModelConfig, chunk: Chunk) -> Work:
    return work(config, chunk.start, chunk.start + chunk.tokens, sparse=chunk.is_sparse)


def _over(seconds: float, amount: float) -> float:
    """Seconds per unit."""
    return max(seconds / amount, _LEAST)
