"""`salalocal evaluate facts FILE` and `salalocal evaluate ruler`: what a model finds in long texts, in figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.status import Status

from salalocal.byte_sizes import parse_gpu_memory
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
from salalocal.cli.terminal import LOG_EVERY_SECONDS, human_seconds, print_json, print_note, stderr, stdout
from salalocal.errors import Cancelled, InvalidRequest
from salalocal.evaluate.fact_rows import draw_rows, read_rows
from salalocal.evaluate.lengths import format_length, parse_lengths
from salalocal.evaluate.ruler.tasks import SINGLE_NEEDLE, choose_tasks

if TYPE_CHECKING:
    from types import TracebackType

    from salalocal.evaluate.facts import FactsCell, Share
    from salalocal.evaluate.ruler.run import RulerCell

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
    table = _FactsTable(silent=json)
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
        data: list[object] = [_facts_as_data(cell) for cell in cells]
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
        _check_png(png, chosen)
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
            on_cell=lambda cell: watch.above(lambda: _note_cell(cell)),
            on_progress=watch.show,
            cancel=cancel,
        )
    if png is not None:
        _write_png(png, engine.name, cells, lengths)
    if json:
        print_json(_ruler_as_data(name, seed, layout, cells, lengths))
    else:
        _print_ruler(engine.name, cells, lengths)


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


class _FactsTable:
    """A line per length, written as it is done; its columns are those of `_facts_as_data`."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._has_head = False

    def add(self, cell: FactsCell) -> None:
        if self._silent:
            return
        if not self._has_head:
            self._has_head = True
            stdout().print(
                f"{'length':>7}  {'answered':<22}{'contained':<22}{'not in text, seen':<22}{'false alarms':<22}"
                f"{'fact blocks read':<22}{'texts':>5}  time",
                style="bold",
            )
        shares = (cell.answered, cell.contained, cell.absent_recognised, cell.false_alarms, cell.fact_blocks_read)
        stdout().out(
            f"{format_length(cell.length):>7}  {''.join(f'{_share(share):<22}' for share in shares)}"
            f"{cell.readings:>5}  {human_seconds(cell.seconds)}"
        )


def _share(share: Share) -> str:
    if share.percent is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{share.percent:.1f} [{low:.0f}-{high:.0f}] of {share.of}"


def _share_as_data(share: Share) -> dict[str, object]:
    return {"percent": share.percent, "interval": share.interval, "count": share.count, "of": share.of}


def _facts_as_data(cell: FactsCell) -> dict[str, object]:
    return {
        "length": cell.length,
        "read_tokens": cell.read_tokens,
        "n": len(cell.outcomes),
        "answered": _share_as_data(cell.answered),
        "contained": _share_as_data(cell.contained),
        "not_in_text_recognised": _share_as_data(cell.absent_recognised),
        "false_alarms": _share_as_data(cell.false_alarms),
        "fact_blocks_read": _share_as_data(cell.fact_blocks_read),
        "readings": cell.readings,
        "reading_seconds": cell.reading_seconds,
        "seconds": cell.seconds,
        "questions": [
            {
                "line": one.row.line,
                "question": one.row.question,
                "answers": one.row.answers,
                "answer": one.answer,
                "verdict": one.verdict,
                "contained": one.contains,
                "depth": one.depth,
                "fact_block_read": one.read_fact,
            }
            for one in cell.outcomes
        ],
    }


def _check_png(path: Path, tasks: Sequence[str]) -> None:
    """Before hours of reading: can the picture be made?"""
    if not any(task in SINGLE_NEEDLE for task in tasks):
        raise InvalidRequest(f"--png shows the single needles; add one of {', '.join(SINGLE_NEEDLE)} to --tasks")
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"{path}: --png writes PNG only; name a file that ends in .png")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent}: there is no such folder to write the picture to")


def _note_cell(cell: RulerCell) -> None:
    print_note(
        f"{cell.task} at {format_length(cell.length)}: {cell.score:.1f} of {len(cell.samples)}, "
        f"{human_seconds(cell.seconds)}"
    )


def _print_ruler(name: str, cells: Sequence[RulerCell], lengths: Sequence[int]) -> None:
    from salalocal.evaluate.ruler.run import PAPER_SCORES, PAPER_SOURCE, mean_score

    by_place = {(cell.task, cell.length): cell.score for cell in cells}
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    width = max(len(name), 24)
    stdout().print(f"{name:<{width}}" + "".join(f"{format_length(length):>9}" for length in lengths), style="bold")
    rows: list[tuple[str, list[float | None]]] = [(task, [by_place[task, n] for n in lengths]) for task in tasks]
    rows.append((f"mean of {len(tasks)}", [mean_score(cells, length) for length in lengths]))
    rows.append(("MiniCPM-SALA, published", [PAPER_SCORES.get(length) for length in lengths]))
    for label, scores in rows:
        figures = (f"{score:>9.1f}" if score is not None else f"{'-':>9}" for score in scores)
        stdout().out(f"{label:<{width}}{''.join(figures)}")
    known = ", ".join(f"{score} at {format_length(length)}" for length, score in PAPER_SCORES.items())
    print_note(f"published: mean of the 13 tasks, {known} ({PAPER_SOURCE})")


def _ruler_as_data(
    name: str, seed: int, layout: str, cells: Sequence[RulerCell], lengths: Sequence[int]
) -> dict[str, object]:
    from salalocal.evaluate.ruler.run import PAPER_SCORES, PAPER_SOURCE, mean_score

    return {
        "model": name,
        "seed": seed,
        "layout": layout,
        "means": {str(length): mean_score(cells, length) for length in lengths},
        "published": {
            "model": "MiniCPM-SALA",
            "source": PAPER_SOURCE,
            "means": {str(length): score for length, score in PAPER_SCORES.items()},
        },
        "cells": [
            {"task": cell.task, "length": cell.length, "score": cell.score, "seconds": cell.seconds}
            | {"samples": [asdict(sample) for sample in cell.samples]}
            for cell in cells
        ],
    }


def _write_png(path: Path, name: str, cells: Sequence[RulerCell], lengths: Sequence[int]) -> None:
    from salalocal.evaluate.heatmap import depth_cells, depth_rows, write_heatmap

    samples = [
        (lengths.index(cell.length), sample.depth, 100 * sample.score)
        for cell in cells
        if cell.task in SINGLE_NEEDLE
        for sample in cell.samples
        if sample.depth is not None
    ]
    columns = [format_length(length) for length in lengths]
    write_heatmap(path, f"{name}: single needle by depth and length", columns, depth_rows(), depth_cells(samples))
    print_note(f"wrote {path}")


def register(app: typer.Typer) -> None:
    """Adds the verb group to the command line."""
    app.add_typer(evaluate, name="evaluate")
