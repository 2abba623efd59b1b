"""A model on the RULER tasks: samples laid out as prompts, answers matched, and the paper's figures beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import perf_counter
from typing import Literal

from salalocal.documents import Document, SourceFile, Span
from salalocal.engine.engine import Engine
from salalocal.engine.events import Token
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampling
from salalocal.errors import Cancelled, ContextTooLong
from salalocal.evaluate.lengths import format_length
from salalocal.evaluate.ruler.sample import Sample
from salalocal.evaluate.ruler.tasks import check_fits, make_sample
from salalocal.evaluate.scoring import match_all, match_part
from salalocal.tokenizer import Message

Layout = Literal["message", "document"]

PAPER_SCORES = {128 << 10: 89.4, 512 << 10: 87.1, 1 << 20: 86.3, 2 << 20: 81.6}
"""Published mean of the 13 tasks for the MiniCPM-SALA weights, by length in tokens."""
PAPER_SOURCE = "MiniCPM-SALA technical report, arXiv 2602.11761, Table 4"


@dataclass(frozen=True)
class Answered:
    """One sample and its answer; `score` is 0 to 1."""

    index: int
    prompt_tokens: int
    depth: float | None
    expected: tuple[str, ...]
    answer: str
    score: float


@dataclass(frozen=True)
class RulerCell:
    """One task at one length."""

    task: str
    length: int
    seconds: float
    samples: tuple[Answered, ...]

    @property
    def score(self) -> float:
        """Mean of the samples, 0 to 100."""
        return 100 * fmean(sample.score for sample in self.samples)


@dataclass(frozen=True)
class RulerProgress:
    """How far an evaluation has come."""

    task: str
    length: int
    sample: int
    samples: int
    read: Progress | None

    def __str__(self) -> str:
        where = f"{self.task} at {format_length(self.length)}, {self.sample} of {self.samples}"
        if self.read is None:
            return where
        percent = 100 * self.read.done_tokens // max(1, self.read.total_tokens)
        return f"{where}: read {percent} % · {self.read.tokens_per_second:,.0f} tokens/s"


def mean_score(cells: Sequence[RulerCell], length: int) -> float | None:
    """Mean over the tasks run at `length`, each task counting once; None where none was."""
    scores = [cell.score for cell in cells if cell.length == length]
    return fmean(scores) if scores else None


def evaluate_ruler(
    engine: Engine,
    tasks: Sequence[str],
    lengths: Sequence[int],
    *,
    count: int = 20,
    seed: int = 0,
    layout: Layout = "message",
    on_cell: Callable[[RulerCell], None] | None = None,
    on_progress: Callable[[RulerProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> list[RulerCell]:
    """Runs `count` samples of every task at every length.

    Args:
        engine: a model with a tokenizer.
        tasks: names of `tasks.TASKS`.
        lengths: tokens of prompt and answer together, as RULER counts.
        layout: "message" puts everything into one user message and begins the answer, as published; "document" gives
            the context as a document and asks the question about it, as `chat` and `ask` do.
        on_cell, on_progress: told of every task and length done, and of every chunk and sample.
        cancel: looked at before every chunk and token; then raises Cancelled.

    Raises:
        InvalidRequest: no tokenizer, or a task does not fit into a length; before anything is read.
        ContextTooLong: a length does not fit into the memory; before anything is read.
    """
    limit = engine.max_context_tokens()
    if max(lengths) > limit:
        raise ContextTooLong(
            f"the length {format_length(max(lengths))} was asked for and {limit:,} tokens fit; give a smaller --length",
            needed_tokens=max(lengths),
            limit_tokens=limit,
        )

    def measure(sample: Sample) -> int:
        return len(prompt_ids(engine, sample, layout)) + sample.answer_tokens

    for length in lengths:
        for task in tasks:
            check_fits(task, length, seed, measure)
    cells = []
    for length in lengths:
        for task in tasks:
            started, answered = perf_counter(), list[Answered]()
            for index in range(count):
                progress = RulerProgress(task, length, index + 1, count, None)
                sample = make_sample(task, length, index, seed, measure)
                answered.append(_answer(engine, sample, index, layout, progress, on_progress, cancel))
            cells.append(RulerCell(task, length, perf_counter() - started, tuple(answered)))
            if on_cell is not None:
                on_cell(cells[-1])
    return cells


def prompt_ids(engine: Engine, sample: Sample, layout: Layout) -> list[int]:
    """The prompt of a sample."""
    tokenizer = engine.tokenizer
    if layout == "message":
        text = f"{sample.instruction}\n{sample.context}\n{sample.question}"
        return tokenizer.encode_prompt([Message("user", text)]).ids + tokenizer.encode_text(sample.answer_prefix)
    document = Document("text.txt", (SourceFile("text.txt", (Span(sample.context, line=1),)),))
    return tokenizer.encode_prompt([Message("user", sample.question)], [document]).ids


def score(sample: Sample, answer: str) -> float:
    """0 to 1, by the sample's match."""
    return (match_all if sample.match == "all" else match_part)(answer, sample.answers)


def _answer(
    engine: Engine,
    sample: Sample,
    index: int,
    layout: Layout,
    progress: RulerProgress,
    on_progress: Callable[[RulerProgress], None] | None,
    cancel: threading.Event | None,
) -> Answered:
    if on_progress is not None:
        on_progress(progress)
    ids, text = prompt_ids(engine, sample, layout), ""
    session = engine.new_session()
    for event in engine.generate(session, ids, Sampling(max_tokens=sample.answer_tokens), cancel=cancel):
        if isinstance(event, Token):
            text += event.text
        elif isinstance(event, Progress) and on_progress is not None:
            on_progress(replace(progress, read=event))
    if cancel is not None and cancel.is_set():
        raise Cancelled(session.length)
    return Answered(index, len(ids), sample.depth, sample.answers, text, score(sample, text))
