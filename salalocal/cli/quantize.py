"""`salalocal quantize MODEL`: a packed copy of a model, and how far each kind of matrix is from the original."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

import salalocal
from salalocal.cli.interrupt import EXIT_INTERRUPTED
from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import LOG_EVERY_SECONDS, human_bytes, one_line, print_json, print_note, stderr, stdout

if TYPE_CHECKING:
    from types import TracebackType

    from salalocal import QuantizeProgress, QuantizeReport


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from 'salalocal list' or a folder of bf16 safetensors.")
    ],
    format: Annotated[
        Literal["int4", "int8"],
        typer.Option("--format", help="int8 packs every matrix in 8 bits; int4 the bulk in 4 and the finer rest in 8."),
    ] = "int4",
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size",
            metavar="64|128",
            help="Numbers that share a scale; without it 128, or 64 where that packs more matrices.",
            show_default=False,
        ),
    ] = None,
    zero_point: Annotated[
        bool, typer.Option("--zero-point", help="Give int4 groups a zero point: slightly nearer, slightly larger.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The folder to make; without it MODEL-FORMAT beside it.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Pack a model into 4 or 8 bits per weight; the copy loads like any other.

    Works a layer at a time. A run that was stopped goes on with the same command; until it is finished, the folder
    is no model. Prints the rms error of every kind of matrix, relative to its rms.
    """
    try:
        with _Bar() as bar:
            report = salalocal.quantize(
                model, out, format=format, group_size=group_size, zero_point=zero_point, on_progress=bar.show
            )
    except KeyboardInterrupt:
        print_note("stopped; what is finished is kept, and the same command goes on from there")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if json:
        print_json(as_data(report))
    else:
        _print(report)


def as_data(report: QuantizeReport) -> dict[str, object]:
    """A finished run for --json."""
    return {
        "path": str(report.path),
        "group_size": report.quantization.group_size,
        "zero_point": report.quantization.zero_point,
        "source_bytes": report.source_bytes,
        "packed_bytes": report.packed_bytes,
        "kinds": [
            {
                "kind": kind.kind,
                "format": kind.format,
                "matrices": kind.matrices,
                "relative_error": kind.relative_error,
                "reason": kind.reason,
            }
            for kind in report.kinds
        ],
    }


def _print(report: QuantizeReport) -> None:
    for kind in report.kinds:
        note = kind.reason if kind.relative_error is None else f"{kind.relative_error:.2%} error"
        stdout().out(f"{kind.kind:<17}  {kind.format}  {kind.matrices:>4}  {note}")
    packed, source = human_bytes(report.packed_bytes), human_bytes(report.source_bytes)
    stdout().out(f"{report.path}: {packed} of {source}, groups of {report.quantization.group_size}")


class _Bar:
    """Progress on stderr: a live bar on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        console = stderr()
        self._is_live = console.is_terminal
        self._logged_at = time.monotonic()
        self._bar = Progress(
            TextColumn("packing", style="bold"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[module]}", style="dim"),
            console=console,
            transient=True,
            disable=not self._is_live,
        )
        self._task = self._bar.add_task("packing", total=None, module="")

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, progress: QuantizeProgress) -> None:
        """Draws or logs how far packing has come."""
        done, total, module = progress.done_parameters, progress.total_parameters, one_line(progress.module)
        self._bar.update(self._task, completed=done, total=total, module=module)
        if not self._is_live and time.monotonic() - self._logged_at >= LOG_EVERY_SECONDS:
            self._logged_at = time.monotonic()
            stderr().print(Text(f"packing {100 * done // total} % · {module}"))


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("quantize", short_help="Pack a model into 4 or 8 bits per weight.")(quantize)
