"""How often what an answer reads is on the device already, where K/V is in main memory.

A model that was trained reads a real book and answers questions about it. Knows no clock.

Answers are made from the whole book, also where the model would take a closer look at parts of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import salalocal
from salalocal import kv_tiers
from salalocal.config import ModelConfig
from salalocal.documents import Document
from salalocal.engine.devices import resolve_device, resolve_dtype
from salalocal.engine.engine import Engine
from salalocal.engine.events import Token
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.errors import InvalidRequest
from salalocal.evaluate.fact_rows import read_rows
from salalocal.hub import find_model
from salalocal.tokenizer import Message

_ANSWER_TOKENS = 48
_BUDGET_STEP = 1 << 20


@dataclass(frozen=True)
class HitRow:
    """One size of memory on the device.

    Attributes:
        kv_bytes: of the device, for K and V.
        times: as many blocks of a kv head as one step reads are on the device, so many times.
        tokens: of the book and the shortest question.
        questions: answered.
        steps: that answers took, the first token of each left out, which is chosen by the question.
        first_hits, first_misses: blocks that the first step of each answer read, on the device and not.
        hits, misses: of the steps after those.
    """

    kv_bytes: int
    times: float
    tokens: int
    questions: int
    steps: int
    first_hits: int
    first_misses: int
    hits: int
    misses: int

    @property
    def rate(self) -> float:
        """Of all steps."""
        hits, misses = self.first_hits + self.hits, self.first_misses + self.misses
        return hits / max(1, hits + misses)

    @property
    def later_rate(self) -> float:
        """Of all but the first steps of answers."""
        return self.hits / max(1, self.hits + self.misses)


def hit_row(
    model: str,
    device: str,
    times: float,
    book: Document,
    questions: Sequence[str],
    on_progress: Callable[[Progress], None] | None = None,
) -> HitRow:
    """Reads the book once, and answers every question from a fork of that reading.

    Args:
        model, device: as for `salalocal.load`.
        times: as many blocks of a kv head as one step reads are to be on the device, so many times; more where a step
            that is not sparse reads more.
        book: is read with block selection.
        questions: about it.
        on_progress: told of the reading.

    Raises:
        InvalidRequest: the model has no sparse attention, or the book is too short for it.
    """
    kv_bytes = _budget(model, device, times)
    engine = salalocal.load(model, device=device, kv_budget=kv_bytes)
    prompts = [engine.tokenizer.encode_prompt([Message("user", question)], [book]).ids for question in questions]
    final, sparse = min(map(len, prompts)), engine.config.sparse
    assert sparse is not None
    if final <= sparse.dense_len:
        raise InvalidRequest(
            f"the book has {final:,} tokens; the model selects blocks from {sparse.dense_len:,} on: take a longer one"
        )
    session = engine.new_session()
    session.prefill(engine.encode([book]), final_length=final, on_progress=on_progress)
    first, later, count = [0, 0], [0, 0], 0
    for ids in prompts:
        for number, (hits, misses) in enumerate(_steps(engine, session.fork(), ids)):
            counts = later if number else first
            counts[0] += hits
            counts[1] += misses
            count += 1
    slots = kv_tiers.tiers(engine.config, engine.dtype.itemsize, kv_bytes).slots
    read = engine.config.num_key_value_heads * sparse.selected_blocks
    return HitRow(kv_bytes, slots / read, final, len(prompts), count, *first, *later)


def _budget(model: str, device: str, times: float) -> int:
    """The least `kv_budget` with which each kv head has so many times what one step reads."""
    config = ModelConfig.from_json(find_model(model) / "config.json")
    if config.sparse is None:
        raise InvalidRequest(f"{model} reads all K and V for every token; there is nothing to leave in main memory")
    itemsize = resolve_dtype("auto", resolve_device(device)).itemsize
    budget = kv_tiers.least_kv_bytes(config, itemsize)
    wanted = times * config.num_key_value_heads * config.sparse.selected_blocks
    while kv_tiers.tiers(config, itemsize, budget).slots < wanted:
        budget += _BUDGET_STEP
    return budget


def _steps(engine: Engine, session: Session, ids: Sequence[int]) -> list[tuple[int, int]]:
    """Hits and misses of every step of one answer."""
    counts = []
    for event in engine.generate(session, ids, Sampling(max_tokens=_ANSWER_TOKENS)):
        if isinstance(event, Token):
            traffic = session.traffic
            assert traffic is not None
            counts.append((traffic.hits, traffic.misses))
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(counts)]


def read_questions(path: Path) -> list[str]:
    """The questions of a facts file.

    Raises:
        InvalidRequest: as for `read_rows`.
    """
    return [row.question for row in read_rows(path)]
