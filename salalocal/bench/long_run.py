"""One run of `bench long` on an NVIDIA GPU: ceilings, our full-size model, the dense peer. Knows no rows' contents."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime

import torch

from salalocal import kv_tiers, machine, planner
from salalocal.bench.clock import Ceilings, measure_ceilings
from salalocal.bench.dense_peer import DensePeer, DenseShape
from salalocal.bench.long import Plan, let_go, missing, time_texts
from salalocal.bench.long_peer import missing_peers, time_peer
from salalocal.bench.long_rows import LongRow, LongTable
from salalocal.bench.made_model import make_network, released_config
from salalocal.bench.scoring import scoring_seconds
from salalocal.config import ModelConfig
from salalocal.engine.gpu_memory import cap, lift_cap
from salalocal.engine.out_of_memory import available_bytes
from salalocal.errors import InvalidRequest
from salalocal.model.narrow import narrowed, why_not
from salalocal_kernels import watch

SCORING = "scoring_seconds_per_square"


def check_card(plan: Plan) -> None:
    """Raises InvalidRequest where there is no NVIDIA GPU, or none that has the plan's 8-bit format."""
    if not torch.cuda.is_available():
        raise InvalidRequest("bench long times texts on an NVIDIA GPU, and PyTorch finds none here")
    lack = why_not(plan.prefill, torch.device("cuda")) if plan.prefill != "full" else ""
    if lack:
        raise InvalidRequest(f"prefill in {lack}; use 'full'")


def time_long(
    plan: Plan,
    peer_lengths: tuple[int, ...],
    table: LongTable,
    on_ceilings: Callable[[Ceilings], None],
    on_row: Callable[[LongRow], None],
) -> dict[str, str]:
    """Measures what `table` lacks of a plan, with a model of the released sizes in the default int4 recipe.

    Args:
        plan: of our model.
        peer_lengths: texts of the dense peer; the cap is not for it.
        table: takes the rows, and what this run was on.
        on_ceilings: told what the card can do; not where there is nothing to measure.
        on_row: told each row as it is there.

    Returns:
        op -> why its definition served and not its kernel; empty as it should be.

    Raises:
        InvalidRequest: there is no NVIDIA GPU, or none that has the 8-bit format.
        DoesNotFit: the weights alone exceed the cap.
        EngineFailure: a model computed NaN or Inf.
    """
    check_card(plan)
    device, config = torch.device("cuda"), released_config()
    plan = under_cap(plan, config, device)
    name = torch.cuda.get_device_name(device)
    if (known := machine.recall("cuda", name)) is not None:
        plan = replace(plan, rates=known.rates)
    ours = missing(plan, table, name)
    if not ours and not missing_peers(peer_lengths, table, name):
        lift_cap(device)
        return {}
    run = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    ceilings = measure_ceilings()
    on_ceilings(ceilings)
    facts: dict[str, object] = {"torch": torch.__version__, "system": platform.platform(), **asdict(ceilings)}
    if ours:
        longest = max(row.tokens for row in ours)
        facts |= {SCORING: scoring_seconds(config, longest), "scoring_at_tokens": longest}
    table.runs[run] = facts
    let_go(device)
    with watch() as served:
        if ours:
            _time_ours(plan, table, name, run, on_row)
        let_go(device)
        lift_cap(device)
        time_peer(lambda: DensePeer(DenseShape(), torch.bfloat16, device), peer_lengths, table, name, run, on_row)
    return dict(served.fallbacks)


def under_cap(plan: Plan, config: ModelConfig, device: torch.device) -> Plan:
    """The plan with the cap set, and with the chunk and the room for K and V that `load` would choose under it."""
    if plan.gpu_memory is None:
        if plan.kv != "full":
            raise InvalidRequest(f"kv in {plan.kv} is for K and V in main memory: give --gpu-memory, or leave --kv out")
        if not plan.is_pinned:
            raise InvalidRequest("--unpinned is for K and V in main memory: give --gpu-memory, or leave it out")
        return plan
    item_bytes = torch.bfloat16.itemsize
    leanest = planner.footprint(config, item_bytes, plan.chunk_tokens, is_lean=True)
    cap(device, plan.gpu_memory, leanest.weight_bytes, "the made-up model")
    available, is_narrow = available_bytes(device), plan.prefill != "full"
    longest = max(plan.lengths)
    taken = kv_tiers.capped(config, item_bytes, available, longest, is_narrow=is_narrow)
    if taken.chunk_tokens > plan.chunk_tokens:
        chunk, is_lean = plan.chunk_tokens, taken.sizes.has_host_table
        sizes = planner.footprint(config, item_bytes, chunk, is_lean=is_lean, is_narrow=is_narrow)
        taken = kv_tiers.Capped(chunk, sizes, kv_tiers.kv_budget(config, sizes, available, longest))
    if plan.kv != "full" and taken.kv_budget is None:
        raise InvalidRequest(f"kv in {plan.kv} is for K and V in main memory, and here they fit on the card")
    is_lean = taken.sizes.has_host_table
    return replace(plan, chunk_tokens=taken.chunk_tokens, kv_budget=taken.kv_budget, is_lean=is_lean)


def _time_ours(plan: Plan, table: LongTable, name: str, run: str, on_row: Callable[[LongRow], None]) -> None:
    device, config = torch.device("cuda"), released_config()
    network = make_network(config, torch.bfloat16, device, is_lean=plan.is_lean)
    if plan.prefill != "full":
        network = narrowed(network, plan.prefill)
    time_texts(network, plan, table, name, run, on_row)
