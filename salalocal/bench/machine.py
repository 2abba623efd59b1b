"""Measures what `salalocal plan` predicts from: the bare machine, and the engine with the embedded model.

Long contexts are not read but laid: the keys and values of a text just read, over and over, each time from another
token on, so that a chunk far into a long text can be timed at once. Random tokens take as long to read as a novel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil
import torch
from torch import Tensor

from salalocal.bench.card import measure_card
from salalocal.cache.manifest import ModelIdentity
from salalocal.cache.session_cache import SessionCache
from salalocal.engine.devices import device_name, resolve_device
from salalocal.engine.engine import Engine
from salalocal.engine.load import load
from salalocal.engine.session import Session
from salalocal.hub import EMBEDDED_MODEL
from salalocal.machine import Hardware, Machine, Reading
from salalocal.times import Chunk, Rates, Step, fit
from salalocal_quant import PackedWeight

# Where the embedded model is timed: the blocks of a full selection are there, and the scores weigh.
_MIDDLE_TOKENS = 16384
_FAR_TOKENS = {"cpu": 65536, "cuda": 262144}
_DENSE_TOKENS = 32768
# From fewer tokens, far contexts are too much alike and are read 6 % faster than a text.
_LAID_FROM_CHUNKS = 6
_REPEATS = {"cpu": 2, "cuda": 5}
_STEPS = {"cpu": 16, "cuda": 128}
_FIRST_STEPS = 4
_SEED = 5
_ENOUGH_SECONDS = 0.3


def measure_machine(device: str = "auto", on_part: Callable[[str], None] | None = None) -> Machine:
    """Measures a device; takes half a minute on a small processor.

    Args:
        device: "auto", "cpu" or "cuda".
        on_part: told in a word or two what comes next.

    Raises:
        InvalidRequest: there is no such device.
        DoesNotFit: not even the embedded model fits into memory.
    """
    say = on_part or (lambda _: None)
    where = resolve_device(device)
    load_meter = OthersMeter()
    say("reading and answering")
    engine = load(EMBEDDED_MODEL, device=where.type)
    timed = _time_engine(engine)
    say("products and copies")
    hardware, rates = _measure_gpu(engine, timed) if where.type == "cuda" else _measure_cpu(engine, timed)
    return Machine(
        device=where.type,
        device_name=device_name(where),
        dtype=str(engine.dtype).removeprefix("torch."),
        measured_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        others_share=load_meter.share(),
        hardware=hardware,
        model=EMBEDDED_MODEL,
        readings=timed.readings,
        rates=rates,
    )


@dataclass(frozen=True)
class _Timed:
    """The engine's figures: for `times.fit`, and for people."""

    chunks: dict[str, Chunk]
    step: Step
    readings: tuple[Reading, ...]


def _time_engine(engine: Engine) -> _Timed:
    kind, tokens = engine.device.type, engine.default_chunk
    # Other tokens than those that the memory is laid from: a text that repeats the question is read in other ways.
    *known, ids = _random_tokens(engine, tokens, _LAID_FROM_CHUNKS + 1)
    seed = _read_a_little(engine, known)
    chunks: dict[str, Chunk] = {}
    readings: list[Reading] = []
    step = Step(0, 0.0, engine.dtype.itemsize, not any(isinstance(w, PackedWeight) for w in engine.network.matrices))
    places = {"first": 0, "middle": _MIDDLE_TOKENS, "far": _FAR_TOKENS[kind]}
    for name, position in places.items():
        cache = _laid(engine, seed, position, tokens)
        seconds = _chunk_seconds(engine, cache, ids, is_sparse=True)
        chunks[name] = Chunk(position, tokens, True, seconds)
        steps = _step_seconds(engine, cache) if position else None
        if name == "middle" and steps is not None:
            step = Step(position, steps, step.item_bytes, step.unpacked)
        readings.append(Reading(position, tokens / seconds, steps and 1 / steps))
        del cache
    cache = _laid(engine, seed, _DENSE_TOKENS, tokens)
    chunks["dense"] = Chunk(_DENSE_TOKENS, tokens, False, _chunk_seconds(engine, cache, ids, is_sparse=False))
    return _Timed(chunks, step, tuple(readings))


def _random_tokens(engine: Engine, tokens: int, chunks: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(engine.config.vocab_size, (chunks, tokens), generator=generator, dtype=torch.int64)
    return list(ids.to(engine.device))


def _read_a_little(engine: Engine, chunks: Sequence[Tensor]) -> SessionCache:
    cache = SessionCache.empty(engine.config, engine.dtype, engine.device)
    with torch.inference_mode():
        for ids in chunks:
            _, states = engine.network.read(ids, cache, True, None)
            cache.commit(ids.shape[0], states)
    return cache


def _laid(engine: Engine, seed: SessionCache, tokens: int, more: int) -> SessionCache:
    """A memory of `tokens` tokens that look like those of `seed`, with room for `more`."""
    cache = SessionCache.empty(engine.config, engine.dtype, engine.device)
    cache.reserve(tokens + more)
    if tokens:
        cache.extend(tokens)
    turn = torch.Generator().manual_seed(_SEED)
    with torch.inference_mode():
        for layer in range(len(engine.config.sparse_layers)):
            # [N, Hkv, 2, B, D] -> K and V [2, N * B, Hkv, D].
            pages = seed.attention(layer).context(seed.length).permute(2, 0, 3, 1, 4)
            known = pages.reshape(2, -1, *pages.shape[3:])[:, : seed.length]
            for start in range(0, tokens, seed.length):
                shift = int(torch.randint(seed.length, (1,), generator=turn))
                keys, values = known.roll(shift, 1)[:, : min(seed.length, tokens - start)]
                cache.attention(layer).append(start, keys, values)
    cache.commit(tokens, [state.clone() for state in seed.states])
    return cache


def _chunk_seconds(engine: Engine, cache: SessionCache, ids: Tensor, *, is_sparse: bool) -> float:
    """The quickest of several readings of the same chunk, so that other programs count least."""

    def read() -> None:
        with torch.inference_mode():
            normed, _ = engine.network.read(ids, cache, is_sparse, None)
            engine.network.logits(normed[-1:])

    return min(_seconds(read, engine.device, _REPEATS[engine.device.type]))


# Of a memory that nobody saves.
_MADE_UP = ModelIdentity("made up", "", "")


def _step_seconds(engine: Engine, cache: SessionCache) -> float:
    """The median of steps as an answer takes them; the first ones record the graph."""
    steps = _STEPS[engine.device.type] + _FIRST_STEPS
    session = Session(engine.network, cache, engine.default_chunk, cache.length + steps, False, _MADE_UP)
    times = sorted(_seconds(lambda: session.step(1), engine.device, steps))
    return times[len(times) // 2]


def _seconds(call: Callable[[], object], device: torch.device, repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - began


def _measure_gpu(engine: Engine, timed: _Timed) -> tuple[Hardware, Rates]:
    """What a model of the released sizes is predicted from; the embedded one is too small to keep a GPU busy, and what
    it takes at least for a chunk is all that counts of it."""
    return measure_card(timed.chunks["first"].seconds / engine.config.num_hidden_layers)


def _measure_cpu(engine: Engine, timed: _Timed) -> tuple[Hardware, Rates]:
    dtype = engine.dtype
    one = torch.zeros(1 << 28, dtype=torch.uint8)
    other = torch.zeros_like(one)
    copy = _quickest(lambda: other.copy_(one))
    side = 2048
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    # 128 MiB and more, which no cache holds.
    matrix = torch.randn(8192, 8192).to(dtype)
    column = torch.randn(1, 8192).to(dtype)
    product = _quickest(lambda: a @ b)
    row = _quickest(lambda: torch.nn.functional.linear(column, matrix))
    hardware = Hardware(
        matmul_flop_per_second=2 * side**3 / product,
        copy_bytes_per_second=2 * one.numel() / copy,
        read_bytes_per_second=matrix.nbytes / row,
        pinned_bytes_per_second=None,
        pageable_bytes_per_second=None,
    )
    flop, read = hardware.matmul_flop_per_second, hardware.read_bytes_per_second
    return hardware, fit(engine.config, timed.chunks, flop, read, timed.step)


def _quickest(call: Callable[[], object]) -> float:
    """Seconds of the quickest call of a third of a second's worth, the first left out."""
    call()
    best, left = float("inf"), _ENOUGH_SECONDS
    while left > 0:
        began = time.perf_counter()
        call()
        taken = time.perf_counter() - began
        best, left = min(best, taken), left - taken
    return best


class OthersMeter:
    """How much of all processor time others take from here on."""

    def __init__(self) -> None:
        self._all, self._mine = self._now()

    def share(self) -> float:
        """Of all there is, 0 to 1."""
        busy, mine = self._now()
        capacity = (busy[1] - self._all[1]) or 1.0
        return min(1.0, max(0.0, (busy[0] - self._all[0]) - (mine - self._mine)) / capacity)

    def _now(self) -> tuple[tuple[float, float], float]:
        """(busy, all) seconds of the machine's cores, and seconds of this process."""
        times, process = psutil.cpu_times(), psutil.Process().cpu_times()
        # The guests' time is part of the users' already.
        everything = sum(value for name, value in times._asdict().items() if not name.startswith("guest"))
        idle = times.idle + getattr(times, "iowait", 0.0)
        return (everything - idle, everything), process.user + process.system
