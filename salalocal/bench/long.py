"""Whole texts of any length: read from the first token on, then answered. Knows no other model than ours.

The full-size model has made-up weights and reads made-up tokens, through the engine's own `Session`. What it reads of
its K/V is its own choice or made selections; scored and chosen is always.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Literal

import torch

from salalocal import kv_tiers
from salalocal.bench.clock import settle
from salalocal.bench.long_rows import OUT_OF_MEMORY, LongRow, LongTable, Traffic
from salalocal.bench.made_selections import MadeSelections
from salalocal.bench.process_memory import peak_resident_bytes, reset_peak
from salalocal.bench.replay import replaying
from salalocal.bench.scoring import compile_pieces, compile_scoring
from salalocal.bench.steps import MADE_UP
from salalocal.cache.session_cache import SessionCache
from salalocal.cache.tiered_store import TieredStore
from salalocal.config import ModelConfig
from salalocal.engine.gpu_memory import peak_bytes
from salalocal.engine.load import make_tiers
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.schedule import chunk_edges
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit
from salalocal.forecast import kv_away
from salalocal.model.network import Network
from salalocal.times import Rates, predict
from salalocal_kernels.gpu.bench.selections import REPLAYED_SHARE, REPLAYED_STEP_SHARE

Selection = Literal["own", "replayed", "all-new"]

# The first steps compile and record.
_WARM_UP_STEPS = 5
_WARM_UP_CHUNKS = 2


@dataclass(frozen=True)
class Plan:
    """What is measured of our model.

    Attributes:
        lengths: of the texts, in tokens; each at least what the model reads with block selection.
        selections: how blocks are chosen.
        prefill: as the engine's.
        chunk_tokens: read at once.
        gpu_memory: the cap that was set, in bytes; told in the rows.
        staged: read the longest text only and note the others on the way.
        steps: decode steps after each text.
        kv_budget: bytes on the card for K and V, which are in host memory then; None: all of them are on the card.
        is_lean: the model is as `load` makes it where the card has hardly room for it.
        rates: of this card, for what a plan says beside what is measured; None: it says nothing.
        kv: how they are kept there, as the engine's.
        is_pinned: host memory is page-locked; if not, all is as where CUDA refuses that.
    """

    lengths: tuple[int, ...]
    selections: tuple[Selection, ...] = ("replayed",)
    prefill: str = "full"
    chunk_tokens: int = 8192
    gpu_memory: int | None = None
    staged: bool = False
    steps: int = 64
    kv_budget: int | None = None
    is_lean: bool = False
    rates: Rates | None = None
    kv: str = "full"
    is_pinned: bool = True


def missing(plan: Plan, table: LongTable, device: str) -> list[LongRow]:
    """The rows of `plan` that `table` lacks, without figures; shorter texts first."""
    rows = (
        LongRow(
            "salalocal",
            tokens,
            kind,
            plan.prefill,
            plan.gpu_memory,
            plan.chunk_tokens,
            False,
            device,
            "",
            kv=plan.kv,
            is_pinned=plan.is_pinned,
        )
        for kind in plan.selections
        for tokens in sorted(plan.lengths)
    )
    return [row for row in rows if table.find(row.setting, row.tokens, staged=plan.staged) is None]


def time_texts(
    network: Network, plan: Plan, table: LongTable, device: str, run: str, on_row: Callable[[LongRow], None]
) -> None:
    """Measures the rows of `plan` that `table` lacks, and adds them.

    Args:
        network: a model of made-up weights, its prefill as the plan says.
        plan: what to measure.
        table: takes the rows, one that ran out of memory too.
        device: the card's name.
        run: this run's name.
        on_row: told each row as it is there.

    Raises:
        EngineFailure: the model computed NaN or Inf.
    """
    lacking = missing(plan, table, device)
    for selection in dict.fromkeys(plan.selections):
        rows = [
            _planned(replace(row, run=run, weight_bytes=network.nbytes), network, plan)
            for row in lacking
            if row.selection == selection
        ]
        # One text for all of them, or one for each.
        for texts in [rows] if plan.staged else [[row] for row in rows]:
            if texts:
                for row in _read_text(network, texts, plan):
                    table.add(row)
                    on_row(row)
                let_go(network.device)


def _planned(row: LongRow, network: Network, plan: Plan) -> LongRow:
    """The row with what a plan says of its setting."""
    rates, config, item_bytes = plan.rates, network.config, network.dtype.itemsize
    if rates is None or not plan.is_pinned or (plan.prefill != "full" and plan.prefill not in rates.narrow_flop):
        return row
    away = None
    if plan.kv_budget is not None:
        if rates.bus is None:
            return row
        away = kv_away(config, item_bytes, kv_tiers.tiers(config, item_bytes, plan.kv_budget, plan.kv), plan.kv)
    told = predict(
        config, rates, row.tokens, plan.chunk_tokens, item_bytes, unpacked=False, prefill=plan.prefill, away=away
    )
    return replace(row, planned_seconds=told.first_token_seconds, planned_tokens_per_second=told.tokens_per_second)


def _read_text(network: Network, rows: list[LongRow], plan: Plan) -> Iterator[LongRow]:
    """Reads the text of the last row, and fills in each where its length is reached."""
    waiting = list(rows)
    try:
        for row in _reading(network, rows, plan):
            waiting.pop(0)
            yield row
    except (torch.OutOfMemoryError, DoesNotFit):
        for row in waiting:
            yield replace(row, staged=row is not rows[-1], note=OUT_OF_MEMORY)


def _reading(network: Network, rows: list[LongRow], plan: Plan) -> Iterator[LongRow]:
    config, device = network.config, network.device
    selections = _made(config, rows[-1].selection, device)
    model = network if selections is None else replaying(network, selections)
    length = rows[-1].tokens
    tiers = _tiers(network, plan)
    _warm_up(model, length, plan.chunk_tokens, tiers)
    session = open_session(model, length + _WARM_UP_STEPS + plan.steps, plan.chunk_tokens, tiers)
    ids = made_ids(config, length)
    stages = {row.tokens: row for row in rows}
    edges = set(chunk_edges(0, length, plan.chunk_tokens, stages))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak()
    before, pinned_before = traffic_of(session), _pin_seconds(session)
    seconds = 0.0
    settle(device)
    begun = perf_counter()
    for _ in session.read(ids, plan.chunk_tokens, length, checkpoints_at=[row.tokens for row in rows[:-1]]):
        if session.length not in edges:
            raise torch.OutOfMemoryError("chunks were halved; the row would tell of others")
        row = stages.get(session.length)
        if row is None:
            continue
        assert session.logits is not None
        # Waits for the device.
        token = Sampler(Sampling())(session.logits)
        seconds += perf_counter() - begun
        row = replace(row, staged=row is not rows[-1], ttft_seconds=seconds)
        row = replace(row, prefill_traffic=_between(before, traffic_of(session)))
        if pinned_before is not None:
            row = replace(row, pin_seconds=(_pin_seconds(session) or 0.0) - pinned_before)
        reached = session.checkpoint() if row.staged else None
        row = _answered(session, row, token, selections, plan.steps, device)
        yield row if row.staged else _with_peaks(row, device)
        if reached is not None:
            session.rewind(reached)
        settle(device)
        begun = perf_counter()


def _answered(
    session: Session, row: LongRow, token: int, selections: MadeSelections | None, steps: int, device: torch.device
) -> LongRow:
    """Takes greedy steps; each reads what the one before chose."""
    sampler = Sampler(Sampling())
    times: list[float] = []
    before = traffic_of(session)

    settle(device)
    at = perf_counter()
    for number in range(_WARM_UP_STEPS + steps):
        if selections is not None:
            selections.aim(session.launched)
        if number == _WARM_UP_STEPS:
            before = traffic_of(session)
        token = session.step_and_choose(token, sampler)
        # From one token on the host to the next: the step after this one may be under way.
        last, at = at, perf_counter()
        times.append(1e3 * (at - last))
    settle(device)
    return replace(
        row,
        decode_ms=median(times[_WARM_UP_STEPS:]),
        steps=steps,
        decode_traffic=_between(before, traffic_of(session)),
    )


def _made(config: ModelConfig, selection: str, device: torch.device) -> MadeSelections | None:
    if selection == "own":
        return None
    shares = (REPLAYED_SHARE, REPLAYED_STEP_SHARE) if selection == "replayed" else (0.0, 0.0)
    return MadeSelections(config, *shares, device)


def _tiers(network: Network, plan: Plan) -> TieredStore | None:
    if plan.kv_budget is None:
        return None
    shares = kv_tiers.tiers(network.config, network.dtype.itemsize, plan.kv_budget, plan.kv)
    tiers = make_tiers(network, shares, plan.kv)
    tiers.host.is_readable = plan.is_pinned
    return tiers


def open_session(network: Network, max_tokens: int, chunk_tokens: int, tiers: TieredStore | None = None) -> Session:
    """An empty session of up to `max_tokens`, with K and V on the card or in `tiers`."""
    cache = SessionCache.empty(network.config, network.dtype, network.device, tiers)
    return Session(network, cache, chunk_tokens, max_tokens, record_selection=False, model=MADE_UP)


def made_ids(config: ModelConfig, tokens: int) -> list[int]:
    """The same for the same length."""
    drawn = torch.randint(config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    ids: list[int] = drawn.tolist()
    return ids


def _warm_up(network: Network, length: int, chunk_tokens: int, tiers: TieredStore | None) -> None:
    """Compiles what a text needs: reads the first tokens of one, scores blocks as far as it goes, and reads pieces."""
    assert network.config.sparse is not None
    tokens = _WARM_UP_CHUNKS * chunk_tokens
    final = max(tokens, network.config.sparse.dense_len)
    if network.device.type == "cuda":
        compile_scoring(network.config, length, chunk_tokens, network.dtype, network.device)
        if tiers is not None:
            compile_pieces(network.config, chunk_tokens, network.dtype, network.device)
    session = open_session(network, final, chunk_tokens, tiers)
    session.prefill(made_ids(network.config, tokens), chunk_tokens, final)
    settle(network.device)


def traffic_of(session: Session) -> Traffic | None:
    """What a session has moved so far, where it keeps K/V in main memory and counts."""
    counted = session.traffic
    return None if counted is None else Traffic(counted.hits, counted.misses, counted.bytes + counted.streamed_bytes)


def _between(before: Traffic | None, after: Traffic | None) -> Traffic | None:
    return None if before is None or after is None else after.since(before)


def _pin_seconds(session: Session) -> float | None:
    counted = session.traffic
    return None if counted is None else counted.pin_seconds


def _with_peaks(row: LongRow, device: torch.device) -> LongRow:
    row = replace(row, peak_host_bytes=peak_resident_bytes())
    if device.type != "cuda":
        return row
    peak = peak_bytes(device)
    return replace(row, peak_device_bytes=peak.nbytes, peak_device_by=peak.by)


def let_go(device: torch.device) -> None:
    """Gives back what a text took, or a measurement: what comes next is of another size."""
    gc.collect()
    if device.type == "cuda":
        # Of cuBLAS, for every stream that recorded a product; PyTorch has no public name for this.
        clear: Callable[[], None] | None = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        torch.cuda.empty_cache()
