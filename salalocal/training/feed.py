"""Batches of samples, made by worker processes ahead of the network, the same ones in the same order in every run.

A batch is a pure function of (seed, stage, index), so a resumed run goes on exactly where the last one stopped.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized

import numpy as np

from salalocal.errors import EngineFailure
from salalocal.training.curriculum import Stage
from salalocal.training.filler import Corpus
from salalocal.training.samples import Sampler, SampleShape
from salalocal.training.statements import Split

_WAIT_SECONDS = 120
_AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """Samples stacked: token_ids [B, T + 1], roles [B, T], queries and sources [B, pairs], document_end [B],
    questions [B, max, 3], far [B, T], crowding [B]."""

    token_ids: np.ndarray
    roles: np.ndarray
    queries: np.ndarray
    sources: np.ndarray
    document_end: np.ndarray
    questions: np.ndarray
    far: np.ndarray
    crowding: np.ndarray


def make_batch(
    corpus: Corpus,
    shape: SampleShape,
    count: int,
    seeds: Sequence[int],
    split: Split = Split.TRAINED,
    held_out: bool = False,
) -> Batch:
    """`count` samples from a generator seeded with `seeds`."""
    sampler = Sampler(corpus, np.random.default_rng(list(seeds)), split, held_out)
    samples = [sampler.sample(shape) for _ in range(count)]
    return Batch(
        np.stack([s.token_ids for s in samples]),
        np.stack([s.roles for s in samples]),
        np.stack([s.query_positions for s in samples]),
        np.stack([s.source_positions for s in samples]),
        np.array([s.document_end for s in samples], np.int32),
        np.stack([s.questions for s in samples]),
        np.stack([s.far for s in samples]),
        np.array([s.crowding for s in samples], np.float32),
    )


_Item = tuple[int, int, Batch]


class Feed:
    """Worker processes that make batches of the current stage; use as a context manager.

    Start it before CUDA is touched: the workers are forked and share the corpus. `workers=0` makes batches on demand.
    In a team of `size`, the feed of `rank` gives its share of every batch: `stages` are those of one process.
    """

    def __init__(
        self, corpus: Corpus, stages: tuple[Stage, ...], workers: int, seed: int, rank: int = 0, size: int = 1
    ) -> None:
        self._corpus = corpus
        self._stages = stages
        self._seeds = (seed, rank) if size > 1 else (seed,)
        self._stage = -1
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._queues: list[Queue[_Item]] = []
        if workers:
            context = multiprocessing.get_context("fork")
            # stage * 2^32 + first index: one number, so that both change at once.
            self._position: Synchronized[int] = context.Value("q", -1)
            for number in range(workers):
                items: Queue[_Item] = context.Queue(_AHEAD)
                arguments = (corpus, stages, self._seeds, number, workers, self._position, items)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                self._queues.append(items)
                self._processes.append(process)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()

    def batch(self, stage: int, index: int) -> Batch:
        """Batch number `index` of a stage. Raises EngineFailure when a worker died or none came in two minutes."""
        if not self._processes:
            return make_batch(
                self._corpus, self._stages[stage].shape, self._stages[stage].batch, (*self._seeds, stage, index)
            )
        if stage != self._stage:
            self._stage = stage
            self._position.value = (stage << 32) + index
        number = index % len(self._queues)
        while True:
            try:
                found_stage, found_index, batch = self._queues[number].get(timeout=_WAIT_SECONDS)
            except queue.Empty:
                alive = self._processes[number].is_alive()
                raise EngineFailure(
                    f"worker {number} made no batch in {_WAIT_SECONDS} s ({'still running' if alive else 'it died'})"
                ) from None
            if (found_stage, found_index) == (stage, index):
                return batch


def _work(
    corpus: Corpus,
    stages: tuple[Stage, ...],
    seeds: tuple[int, ...],
    number: int,
    workers: int,
    position: Synchronized[int],
    items: Queue[_Item],
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    known, index = -2, 0
    while True:
        current = position.value
        if current < 0:
            time.sleep(0.02)
            continue
        stage, first = current >> 32, current & 0xFFFFFFFF
        if current != known:
            known, index = current, first + (number - first) % workers
        batch = make_batch(corpus, stages[stage].shape, stages[stage].batch, (*seeds, stage, index))
        items.put((stage, index, batch))
        index += workers
