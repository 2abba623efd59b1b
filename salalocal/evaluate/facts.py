"""`salalocal evaluate facts`: what a model finds of facts that were planted in a text of a given length.

A text is read once for all questions that fit it; every question is asked of a fork of that reading. Knows how an
answer is counted, and which blocks the sparse layers read for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from salalocal.engine.engine import Engine
from salalocal.engine.events import Done, Token
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampling
from salalocal.engine.session import Session
from salalocal.errors import Cancelled, ContextTooLong
from salalocal.evaluate.fact_rows import FactRow
from salalocal.evaluate.lengths import format_length
from salalocal.evaluate.planting import Batch, Planted, PlantedFact, make_batches, plant
from salalocal.evaluate.scoring import contains_any, is_any, says_absent, wilson
from salalocal.tokenizer import Message

# Tokens read in one call. What a session records of a call's selection takes 400 bytes a token and layer.
_CALL_TOKENS = 32768

Verdict = Literal["right", "wrong", "not in the text"]


@dataclass(frozen=True)
class Outcome:
    """One question and its answer.

    Attributes:
        row: what was asked.
        answer: what the model said.
        verdict: "not in the text" where it said so; "right" where that or the answer was right.
        contains: an accepted answer stands in the answer as whole words.
        depth: of the fact, 0 to 1; None without a fact.
        read_fact: a sparse layer selected a block of the fact for a token of the answer; None without a fact or
            where the answer was made with dense attention.
    """

    row: FactRow
    answer: str
    verdict: Verdict
    contains: bool
    depth: float | None
    read_fact: bool | None

    @property
    def is_false_alarm(self) -> bool:
        """The fact was there, and the model said that it was not."""
        return self.row.fact is not None and self.verdict == "not in the text"


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with its 95 % interval."""

    count: int
    of: int

    @property
    def percent(self) -> float | None:
        """None of none."""
        return 100 * self.count / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """In percent (Wilson); None of none."""
        low, high = wilson(self.count, self.of)
        return (100 * low, 100 * high) if self.of else None


@dataclass(frozen=True)
class FactsCell:
    """All questions at one length.

    Attributes:
        length: tokens asked for; read_tokens: of the shortest reading, up to its question.
        readings: texts read; reading_seconds, seconds: for them, and in all.
    """

    length: int
    read_tokens: int
    readings: int
    reading_seconds: float
    seconds: float
    outcomes: tuple[Outcome, ...]

    @property
    def answered(self) -> Share:
        """Right answers to questions whose fact is in the text."""
        return self._share(lambda one: one.verdict == "right", lambda one: one.row.fact is not None)

    @property
    def contained(self) -> Share:
        """Those whose answer at least contains an accepted one."""
        return self._share(lambda one: one.contains, lambda one: one.row.fact is not None)

    @property
    def absent_recognised(self) -> Share:
        """ "Not in the text", said of questions whose fact is not."""
        return self._share(lambda one: one.verdict == "right", lambda one: one.row.fact is None)

    @property
    def false_alarms(self) -> Share:
        """ "Not in the text", said of questions whose fact is."""
        return self._share(lambda one: one.is_false_alarm, lambda one: one.row.fact is not None)

    @property
    def fact_blocks_read(self) -> Share:
        """Right answers made with sparse attention for which a block of the fact was selected."""
        return self._share(
            lambda one: one.read_fact is True, lambda one: one.verdict == "right" and one.read_fact is not None
        )

    def _share(self, counts: Callable[[Outcome], bool], belongs: Callable[[Outcome], bool]) -> Share:
        among = [one for one in self.outcomes if belongs(one)]
        return Share(sum(map(counts, among)), len(among))


@dataclass(frozen=True)
class FactsProgress:
    """How far an evaluation has come: which length and reading, questions asked of it, or how far it is read."""

    length: int
    reading: int
    readings: int
    read: Progress | None
    asked: int
    questions: int

    def __str__(self) -> str:
        where = f"{format_length(self.length)}, text {self.reading} of {self.readings}"
        if self.read is None:
            return f"{where}: {self.asked:,} of {self.questions:,} questions"
        percent = 100 * self.read.done_tokens // max(1, self.read.total_tokens)
        return f"{where}: read {percent} % · {self.read.tokens_per_second:,.0f} tokens/s"


def evaluate_facts(
    engine: Engine,
    rows: Sequence[FactRow],
    lengths: Sequence[int],
    *,
    seed: int = 0,
    max_tokens: int = 64,
    on_cell: Callable[[FactsCell], None] | None = None,
    on_progress: Callable[[FactsProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> list[FactsCell]:
    """Asks all questions at every length.

    Args:
        engine: a model with a tokenizer.
        rows: the questions.
        lengths: tokens of a prompt up to the question.
        seed: of texts and depths.
        max_tokens: longest answer.
        on_cell: told each length as it is done.
        on_progress: told of chunks and questions.
        cancel: looked at before every chunk and token; then raises Cancelled.

    Raises:
        InvalidRequest: no tokenizer, or the facts do not fit into a length.
        ContextTooLong: a length does not fit into the memory; before anything is read.
    """
    longest = max(len(engine.tokenizer.encode_text(row.question)) for row in rows)
    limit, needed = engine.max_context_tokens(), max(lengths) + longest + max_tokens + 64
    if needed > limit:
        raise ContextTooLong(
            f"a text of {format_length(max(lengths))} with question and answer takes up to {needed:,} tokens and "
            f"{limit:,} fit; give a smaller --length",
            needed_tokens=needed,
            limit_tokens=limit,
        )
    cells = []
    for length in lengths:
        run = _Cell(engine, length, seed, Sampling(max_tokens=max_tokens), on_progress, cancel or threading.Event())
        cells.append(run.measure(rows))
        if on_cell is not None:
            on_cell(cells[-1])
    return cells


class _Cell:
    """The run of one length."""

    def __init__(
        self,
        engine: Engine,
        length: int,
        seed: int,
        sampling: Sampling,
        on_progress: Callable[[FactsProgress], None] | None,
        cancel: threading.Event,
    ) -> None:
        self._engine, self._length, self._seed, self._sampling = engine, length, seed, sampling
        self._on_progress, self._cancel = on_progress, cancel
        self._reading = self._readings = 0

    def measure(self, rows: Sequence[FactRow]) -> FactsCell:
        started, reading_seconds = perf_counter(), 0.0
        tokenizer = self._engine.tokenizer
        batches = make_batches(rows, self._length, tokenizer, self._seed)
        self._readings = len(batches)
        outcomes: list[Outcome] = []
        sizes: list[int] = []
        for number, batch in enumerate(batches, start=1):
            self._reading = number
            planted = plant(list(batch.facts), self._length, tokenizer, f"{self._seed} {self._length} {number}")
            began = perf_counter()
            session = self._read(planted, batch)
            reading_seconds += perf_counter() - began
            sizes.append(planted.tokens)
            for asked, row in enumerate(batch.rows):
                self._tell(None, asked, len(batch.rows))
                outcomes.append(self._ask(session, planted, row))
        outcomes.sort(key=lambda one: one.row.line)
        return FactsCell(
            self._length, min(sizes), len(batches), reading_seconds, perf_counter() - started, tuple(outcomes)
        )

    def _read(self, planted: Planted, batch: Batch) -> Session:
        """Reads the text under the length that every prompt about it at least has, so that none changes attention."""
        ids = self._prompt(planted, batch.rows[0])[: planted.tokens]
        final = min(len(self._prompt(planted, row)) for row in batch.rows)
        session = self._engine.new_session(record_selection=True)
        started = perf_counter()

        def tell(progress: Progress) -> None:
            done = session.length
            rate = done / max(perf_counter() - started, 1e-9)
            left = (len(ids) - done) / rate
            self._tell(
                Progress(done, len(ids), rate, left, progress.device_bytes, progress.host_bytes), 0, len(batch.rows)
            )

        for start in range(0, len(ids), _CALL_TOKENS):
            part = ids[start : start + _CALL_TOKENS]
            session.prefill(part, final_length=final, on_progress=tell, cancel=self._cancel)
        return session

    def _prompt(self, planted: Planted, row: FactRow) -> list[int]:
        return self._engine.tokenizer.encode_prompt([Message("user", row.question)], [planted.document]).ids

    def _ask(self, session: Session, planted: Planted, row: FactRow) -> Outcome:
        fork = session.fork()
        fact = planted.facts[row.fact] if row.fact is not None else None
        text, read_fact = "", None
        question = [Message("user", row.question)]
        for event in self._engine.chat(fork, question, [planted.document], self._sampling, cancel=self._cancel):
            if isinstance(event, Token):
                text += event.text
            if fact is not None and isinstance(event, Token | Done):
                # The call that this token was drawn from: the question for the first one, then a step each; after a
                # closer look always the question.
                selected = self._selects(fork, fact)
                read_fact = selected if read_fact is None else read_fact or bool(selected)
        if self._cancel.is_set():
            raise Cancelled(fork.length)
        verdict: Verdict
        if row.fact is None:
            verdict = "right" if says_absent(text) else "wrong"
        elif is_any(text, row.answers):
            verdict = "right"
        else:
            verdict = "not in the text" if says_absent(text) else "wrong"
        return Outcome(
            row, text, verdict, contains_any(text, row.answers), fact.depth if fact is not None else None, read_fact
        )

    def _selects(self, session: Session, fact: PlantedFact) -> bool | None:
        """Whether any sparse layer selected a block of the fact for the last query; None where attention was dense."""
        config = self._engine.config
        if config.sparse is None:
            return None
        size = config.sparse.block_size
        first, last = fact.start // size, (fact.end - 1) // size
        picked = [session.selected_blocks(layer) for layer in config.sparse_layers]
        if any(blocks is None for blocks in picked):
            return None
        return any(bool(((b[:, -1] >= first) & (b[:, -1] <= last)).any()) for b in picked if b is not None)

    def _tell(self, read: Progress | None, asked: int, questions: int) -> None:
        if self._on_progress is not None:
            self._on_progress(FactsProgress(self._length, self._reading, self._readings, read, asked, questions))
