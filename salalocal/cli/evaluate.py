"""`salalocal evaluate facts FILE` and `salalocal evaluate ruler`: what a model finds in long texts, in figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.status import Status

from salalocal.byte_sizes import parse_gpu_memory
from salalocal.cli.evaluate_results import (
    FactsTable,
    check_png,
    facts_as_data,
    note_cell,
    print_ruler,
    ruler_as_data,
    write_png,
)
from salalocal.cli.interrupt import EXIT_INTERRUPTED, cancel_on_interrupt
from salalocal.cli.opening import choose_model, load_engine
from salalocal.cli.options import (
    DeviceOption,
    DtypeOption,
    GpuMemoryOption,
    JsonOption,
    KvOption,
    ModelOption,
    PrefillOption,
)
from salalocal.cli.terminal import LOG_EVERY_SECONDS, print_json, print_note, stderr
from salalocal.errors import Cancelled
from salalocal.evaluate.fact_rows import draw_rows, read_rows
from salalocal.evaluate.lengths import parse_lengths
from salalocal.evaluate.ruler.tasks import choose_tasks

if TYPE_CHECKING:
    from types import TracebackType

LEAST_FACTS_TOKENS, LEAST_RULER_TOKENS, MOST_TOKENS = 1 << 10, 4 << 10, 2 << 20

evaluate = typer.Typer(help="Measure what a model finds in long texts.", rich_markup_mode=None, no_args_is_help=False)

LengthOption = Annotated[
    str, typer.Option("--length", metavar="N,N...", help="Lengths in tokens; K is 1,024 and M 1,024 K: 8K,64K,1M.")
]
SamplesSeedOption = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Of the texts; the same seed makes the same.")
]


@evaluate.command("facts", short_help="Ask about facts planted in a long text.")
def facts(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Rows of fact, question and answers, as JSON lines.")],
    length: LengthOption = "8K",
    model: ModelOption = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count",
            min=1,
            metavar="N",
            help="Ask so many rows, drawn by the seed; without it all.",
            show_default=False,
        ),
    ] = None,
    seed: SamplesSeedOption = 0,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer, in tokens.")
    ] = 64,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    prefill: PrefillOption = "full",
    gpu_memory: GpuMemoryOption = None,
    kv: KvOption = "full",
    json: JsonOption = False,
) -> None:
    """Plant facts in a made-up text, read it once, and ask a question about each.

    A row without fact and answers asks for something that is not in the text. An answer counts if it is one of the
    row's, but for case, white space and punctuation at its ends. Shares are in percent, with 95 % intervals.
    """
    gpu_bytes = parse_gpu_memory(gpu_memory)
    lengths = parse_lengths(length, LEAST_FACTS_TOKENS, MOST_TOKENS)
    rows = draw_rows(read_rows(file), count, seed)
    name = choose_model(model)
    from salalocal.evaluate.facts import evaluate_facts

    engine = load_engine(name, device, dtype, prefill, gpu_bytes, kv)
    table = FactsTable(silent=json)
    with _Watch() as watch, _stopping(), cancel_on_interrupt() as cancel:
        cells = evaluate_facts(
            engine,
            rows,
            lengths,
            seed=seed,
            max_tokens=max_tokens,
            on_cell=lambda cell: watch.above(lambda: table.add(cell)),
            on_progress=watch.show,
            cancel=cancel,
        )
    if json:
        data: list[object] = [facts_as_data(cell) for cell in cells]
        print_json({"model": name, "file": str(file), "rows": len(rows), "seed": seed, "cells": data})


@evaluate.command("ruler", short_help="Run the RULER tasks.")
def ruler(
    length: LengthOption = "8K",
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="NAME,NAME...", help="Only these; without it all 13.", show_default=False)
    ] = "",
    count: Annotated[int, typer.Option("--count", min=1, metavar="N", help="Samples per task and length.")] = 20,
    model: ModelOption = None,
    seed: SamplesSeedOption = 0,
    layout: Annotated[
        Literal["message", "document"],
        typer.Option(
            "--layout",
            help="One message with the answer begun, as published; or a document and a question, as 'ask' puts it.",
        ),
    ] = "message",
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE",
            help="Write depth by length of the single needles as a picture.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    prefill: PrefillOption = "full",
    gpu_memory: GpuMemoryOption = None,
    kv: KvOption = "full",
    json: JsonOption = False,
) -> None:
    """Run the RULER tasks at any length up to 2M tokens, with texts made up here after their published definitions.

    Scores are RULER's own: the share of expected words that stand in the answer, in percent. The published row of the
    MiniCPM-SALA weights stands below the mean, where it has the length.
    """
    gpu_bytes = parse_gpu_memory(gpu_memory)
    lengths = parse_lengths(length, LEAST_RULER_TOKENS, MOST_TOKENS)
    chosen = choose_tasks([task.strip() for task in tasks.split(",")] if tasks.strip() else [])
    if png is not None:
        check_png(png, chosen)
    name = choose_model(model)
    from salalocal.evaluate.ruler.run import evaluate_ruler

    engine = load_engine(name, device, dtype, prefill, gpu_bytes, kv)
    with _Watch() as watch, _stopping(), cancel_on_interrupt() as cancel:
        cells = evaluate_ruler(
            engine,
            chosen,
            lengths,
            count=count,
            seed=seed,
            layout=layout,
            on_cell=lambda cell: watch.above(lambda: note_cell(cell)),
            on_progress=watch.show,
            cancel=cancel,
        )
    if png is not None:
        write_png(png, engine.name, cells, lengths)
    if json:
        print_json(ruler_as_data(name, seed, layout, cells, lengths))
    else:
        print_ruler(engine.name, cells, lengths)


@contextmanager
def _stopping() -> Iterator[None]:
    """Ends a run that Ctrl-C stopped."""
    try:
        yield
    except Cancelled as error:
        print_note("stopped; what is not shown above is lost")
        raise typer.Exit(EXIT_INTERRUPTED) from error


class _Watch:
    """How far a run has come, on stderr: a line that changes on a terminal, else one every ten seconds."""

    def __init__(self) -> None:
        self._console = stderr()
        self._logged_at = time.monotonic()
        self._status: Status | None = None

    def __enter__(self) -> _Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def show(self, progress: object) -> None:
        """`str(progress)` is what is shown."""
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status(str(progress))
                self._status.start()
            self._status.update(str(progress))
        elif time.monotonic() - self._logged_at >= LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            self._console.print(str(progress))

    def above(self, write: Callable[[], None]) -> None:
        """Calls `write` with nothing of this on the screen."""
        self._stop()
        write()

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def register(app: typer.Typer) -> None:
    """Adds the verb group to the command line."""
    app.add_typer(evaluate, name="evaluate")
