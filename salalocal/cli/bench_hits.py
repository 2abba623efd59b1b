"""`salalocal bench hits`: how often what an answer reads of K/V in main memory is on the device already."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salalocal.byte_sizes import human_size
from salalocal.cli.opening import choose_model, read_documents
from salalocal.cli.options import DeviceOption, JsonOption, ModelOption
from salalocal.cli.terminal import ReadingBar, human_count, print_json, stderr, stdout
from salalocal.errors import InvalidRequest

if TYPE_CHECKING:
    from salalocal.bench.hits import HitRow

_MOST_TIMES = 1024
_HEADER = (
    f"{'a step, times':>13} {'on the device':>14} {'all steps':>10} {'behind the first':>17} {'misses a step':>14}"
)


def hits(
    book: Annotated[str, typer.Argument(metavar="BOOK", help="A text, PDF or folder that is long enough.")],
    questions: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help='One {"question": ...} a line.')],
    times: Annotated[
        str, typer.Option("--times", metavar="N,N...", help="Keep so many times what one step reads on the device.")
    ] = "2,4,8",
    model: ModelOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Read a book with its K/V in main memory, answer questions about it, and count what came over the bus.

    The device keeps so many times as many blocks as one token reads; of the rest, what an answer reads is fetched for
    every token. The table says which share of the blocks was there: of all tokens, and of those behind the second one
    of each answer, which have one before them. Answers are made from the whole book. This is for a GPU: a processor
    reads a text that exceeds one buffer by the plain definition of attention, which takes very long.
    """
    from salalocal.bench.hits import hit_row, read_questions

    asked = read_questions(questions)
    (document,) = read_documents([book])
    chosen, console = choose_model(model), stderr() if json else stdout()
    rows: list[HitRow] = []
    for count in _times(times):
        with ReadingBar(threading.Event()) as bar:
            row = hit_row(chosen, device, count, document, asked, bar.show)
        if not rows:
            console.print(f"{human_count(row.tokens)} tokens, {row.questions} questions", style="dim")
            console.print(_HEADER, style="bold")
        rows.append(row)
        console.print(_line(row))
    if json:
        print_json([{**asdict(row), "rate": row.rate, "later_rate": row.later_rate} for row in rows])


def _line(row: HitRow) -> str:
    misses = (row.first_misses + row.misses) / max(1, row.steps)
    return (
        f"{row.times:>13.1f} {human_size(row.kv_bytes):>14} {100 * row.rate:>8.1f} % {100 * row.later_rate:>15.1f} % "
        f"{misses:>14.1f}"
    )


def _times(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(1 <= count <= _MOST_TIMES for count in found):
        raise InvalidRequest(f"--times is {text[:40]!r}; give numbers from 1 to {_MOST_TIMES:,}, as in 2,4,8")
    return found
