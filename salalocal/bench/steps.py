"""How long the whole model takes for a decode step and a prefill chunk, with made-up weights and history.

Knows no kernels. Everything goes the engine's own way: a `Session` steps and reads, on a GPU with its CUDA graph. All
K/V is in the device's memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, sleep
from typing import Literal

import torch

from salalocal.bench.clock import Ceilings, measure_ceilings, recorded_milliseconds, settle, wall_milliseconds
from salalocal.bench.made_model import make_history, make_network, released_config
from salalocal.bench.replay import Replay, replaying
from salalocal.bench.step_costs import decode_bytes, narrow_flop, prefill_flop
from salalocal.bench.step_parts import WHOLE, step_parts
from salalocal.cache.manifest import ModelIdentity
from salalocal.cache.session_cache import SessionCache
from salalocal.config import ModelConfig
from salalocal.engine.out_of_memory import available_bytes
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit, EngineFailure, InvalidRequest
from salalocal.model.narrow import narrowed, why_not
from salalocal.model.network import Network
from salalocal.planner import footprint
from salalocal.weights.layout import parameter_count
from salalocal_kernels import watch
from salalocal_kernels.gpu.bench.selections import REPLAYED_SHARE, REPLAYED_STEP_SHARE

Selection = Literal["own", "replayed"]
Products = Literal["full", "int8", "fp8"]

MADE_UP = ModelIdentity("made up", "", "bfloat16")

# The first step compiles kernels and is recorded; a few more, and the card runs at its pace.
_WARM_UP_STEPS = 5
_REST_SECONDS = 3
_WARM_UP_CHUNKS = 1


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        decode_lengths: tokens of history of the decode steps.
        steps: decode steps per row.
        chunk_tokens: tokens of a prefill chunk.
        chunk_history: tokens before it.
        chunks: how often it is read per row.
        products: how a chunk multiplies packed matrices; what the card lacks is left out.
        with_parts: time also what a decode step consists of.
    """

    decode_lengths: tuple[int, ...] = (1 << 16, 1 << 20)
    steps: int = 100
    chunk_tokens: int = 8192
    chunk_history: int = 1 << 14
    chunks: int = 5
    products: tuple[Products, ...] = ("full", "int8", "fp8")
    with_parts: bool = False


@dataclass(frozen=True)
class StepRow:
    """One kind of step at one length.

    Attributes:
        step: "decode", one token and the choice of the next; "prefill", a chunk.
        history, tokens: tokens read before, and by the step.
        selection: "own", what the made-up weights select; "replayed", made selections (docs/performance.md).
        milliseconds: the median by the wall clock: of a chunk from the call to its result, of a decode step from one
            token on the host to the next.
        repeats: how many it is the median of.
        device_ms: of a decode step's CUDA graph alone; None for a chunk.
        floor_ms: the step's bytes at the copy's rate, or its operations at the product's, each kind at its own; None
            without a GPU.
        bound: which of the two, "bytes" or the unit of the products with packed matrices.
        parts: of a decode step's graph, in milliseconds by name; empty where they were not asked for.
        products: how packed matrices were multiplied, as the engine's `prefill`.
        rested_ms: of one chunk after the card has rested, as a short prompt finds it: chunk behind chunk a card comes
            to the limit of its power and slows down. None for a decode step, and without a GPU.
    """

    step: Literal["decode", "prefill"]
    history: int
    tokens: int
    selection: Selection
    milliseconds: float
    repeats: int
    device_ms: float | None
    floor_ms: float | None
    bound: str
    parts: dict[str, float] = field(default_factory=dict)
    products: Products = "full"
    rested_ms: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """By the wall clock."""
        return 1e3 * self.tokens / self.milliseconds

    @property
    def of_ceiling(self) -> float | None:
        """The floor's share of the wall clock's time."""
        return None if self.floor_ms is None else self.floor_ms / self.milliseconds


@dataclass(frozen=True)
class StepTimes:
    """All rows, and what they were measured on.

    Attributes:
        ceilings: of the card, in the same run.
        parameters, weight_bytes: of the model.
        peak_bytes: the most that PyTorch held on the card.
        fallbacks: op -> why its definition served and not its kernel; empty as it should be.
        rows: in the order in which they were measured.
    """

    ceilings: Ceilings
    parameters: int
    weight_bytes: int
    peak_bytes: int
    fallbacks: dict[str, str]
    rows: list[StepRow]


def time_released(
    plan: Plan,
    on_ceilings: Callable[[Ceilings], None],
    on_model: Callable[[Network], None],
    on_row: Callable[[StepRow], None],
) -> StepTimes:
    """Times a model of the released sizes, in the default int4 recipe and bfloat16, on the current GPU.

    Args:
        plan: what to time.
        on_ceilings, on_model, on_row: told the card's ceilings, the model, and each row as they are there.

    Raises:
        InvalidRequest: there is no NVIDIA GPU.
        DoesNotFit: model and longest history exceed its free memory; nothing was allocated.
    """
    if not torch.cuda.is_available():
        raise InvalidRequest("bench steps times the model on an NVIDIA GPU, and PyTorch finds none here")
    config, device = released_config(), torch.device("cuda")
    _check_fits(config, plan, device)
    ceilings = measure_ceilings()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    on_ceilings(ceilings)
    network = make_network(config, torch.bfloat16, device)
    on_model(network)
    with watch() as served:
        rows = time_steps(network, plan, ceilings, on_row)
    peak = torch.cuda.max_memory_allocated()
    return StepTimes(ceilings, parameter_count(config), network.nbytes, peak, served.fallbacks, rows)


def time_steps(
    network: Network, plan: Plan, ceilings: Ceilings | None, on_row: Callable[[StepRow], None]
) -> list[StepRow]:
    """The rows of `plan`, on whatever device `network` is; `on_row` is told each as it is there.

    Raises:
        EngineFailure: the model computed NaN or Inf.
    """
    found: list[StepRow] = []
    with torch.inference_mode():
        for row in _rows(network, plan, ceilings):
            found.append(row)
            on_row(row)
    return found


def _rows(network: Network, plan: Plan, ceilings: Ceilings | None) -> Iterator[StepRow]:
    for history in plan.decode_lengths:
        yield from _decode_rows(network, history, plan, ceilings)
        _let_go(network.device)
    yield from _prefill_rows(network, plan, ceilings)
    _let_go(network.device)


def _decode_rows(network: Network, history: int, plan: Plan, ceilings: Ceilings | None) -> Iterator[StepRow]:
    config, steps = network.config, _WARM_UP_STEPS + plan.steps
    moved = decode_bytes(config, network.dtype.itemsize, history)
    floor = None if ceilings is None else 1e3 * moved / ceilings.copy_bytes_per_second
    cache = make_history(config, history, history + steps, network.dtype, network.device)
    start = cache.checkpoint(None)
    # One more than is counted: the step after the last one may begin.
    replay = Replay.made(config, history, steps + 1, REPLAYED_STEP_SHARE, network.device)
    for selection, model in _kinds(network, replay):
        milliseconds = _wall_of_step(model, cache, replay, steps)
        cache.rewind(start)
        replay.aim(history)
        parts = _parts(model, cache, plan.with_parts)
        device_ms = parts.pop(WHOLE)
        cache.rewind(start)
        yield StepRow("decode", history, 1, selection, milliseconds, plan.steps, device_ms, floor, "bytes", parts)


def _kinds(network: Network, replay: Replay) -> tuple[tuple[Selection, Network], ...]:
    return ("own", network), ("replayed", replaying(network, replay))


def _wall_of_step(network: Network, cache: SessionCache, replay: Replay, steps: int) -> float:
    """The median of all but the warm-ups; greedy, each step reads what the one before chose."""
    session = _session(network, cache, cache.length + steps)
    sampler = Sampler(Sampling())
    times: list[float] = []
    token = 0
    settle(network.device)
    at = perf_counter()
    for _ in range(steps):
        replay.aim(session.launched)
        token = session.step_and_choose(token, sampler)
        # From one token on the host to the next: the step after this one may be under way.
        before, at = at, perf_counter()
        times.append(1e3 * (at - before))
    settle(network.device)
    return median(times[_WARM_UP_STEPS:])


def _parts(network: Network, cache: SessionCache, is_every: bool) -> dict[str, float]:
    calls = step_parts(network, cache)
    return {
        name: recorded_milliseconds(call, network.device) for name, call in calls.items() if is_every or name == WHOLE
    }


def _prefill_rows(network: Network, plan: Plan, ceilings: Ceilings | None) -> Iterator[StepRow]:
    config, history, tokens = network.config, plan.chunk_history, plan.chunk_tokens
    cache = make_history(config, history, history + tokens, network.dtype, network.device)
    replay = Replay.made(config, history, tokens, REPLAYED_SHARE, network.device)
    for products in plan.products:
        if products != "full" and why_not(products, network.device):
            continue
        floor = _floor_of_chunk(config, history, tokens, products, ceilings)
        bound = "bf16" if products == "full" else products
        rounding = network if products == "full" else narrowed(network, products)
        for selection, model in _kinds(rounding, replay):
            took, rested = _wall_of_chunk(model, cache, tokens, plan.chunks)
            yield StepRow(
                "prefill", history, tokens, selection, took, plan.chunks, None, floor, bound,
                products=products, rested_ms=rested,
            )  # fmt: skip


def _floor_of_chunk(
    config: ModelConfig, history: int, tokens: int, products: Products, ceilings: Ceilings | None
) -> float | None:
    if ceilings is None:
        return None
    rates, flop = ceilings.flop_per_second, prefill_flop(config, history, tokens)
    if products == "full":
        return 1e3 * flop / rates["bf16"]
    if products not in rates:
        return None
    narrow = narrow_flop(config, tokens)
    return 1e3 * (narrow / rates[products] + (flop - narrow) / rates["bf16"])


def _wall_of_chunk(network: Network, cache: SessionCache, tokens: int, repeats: int) -> tuple[float, float | None]:
    """The median of all but the warm-up, and one after a rest; the session is where it began before and after each."""
    session = _session(network, cache, cache.length + tokens)
    start = session.checkpoint()
    drawn = torch.randint(network.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    ids: list[int] = drawn.tolist()

    def once() -> float:
        took = wall_milliseconds(lambda: session.prefill(ids, chunk_size=tokens), network.device)
        if session.logits is None or not session.logits.isfinite().all():
            raise EngineFailure("the made-up model computed NaN or Inf instead of logits; its times mean nothing")
        session.rewind(start)
        return took

    times = [once() for _ in range(_WARM_UP_CHUNKS + repeats)]
    rested = None
    if network.device.type == "cuda":
        sleep(_REST_SECONDS)
        rested = once()
    return median(times[_WARM_UP_CHUNKS:]), rested


def _session(network: Network, cache: SessionCache, max_tokens: int) -> Session:
    session = Session(network, cache, max_tokens, max_tokens, record_selection=False, model=MADE_UP)
    session.token_ids.extend([0] * cache.length)
    return session


def _check_fits(config: ModelConfig, plan: Plan, device: torch.device) -> None:
    sizes = footprint(config, torch.bfloat16.itemsize, plan.chunk_tokens)
    longest = max((*plan.decode_lengths, plan.chunk_history + plan.chunk_tokens))
    needed, available = sizes.weight_bytes + sizes.context_bytes(longest), available_bytes(device)
    if needed > available:
        raise DoesNotFit(
            f"the model and {longest:,} tokens need {needed / 2**30:.1f} GiB of the card's memory and "
            f"{available / 2**30:.1f} GiB are free; name a shorter --length",
            needed_bytes=needed,
            available_bytes=available,
        )


def _let_go(device: torch.device) -> None:
    """Gives back what a history took: the next one is of another size."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
