"""What `salalocal evaluate` writes of its results: tables, JSON and a picture. Asks no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from salalocal.cli.terminal import human_seconds, print_note, stdout
from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import format_length
from salalocal.evaluate.ruler.tasks import SINGLE_NEEDLE

if TYPE_CHECKING:
    from salalocal.evaluate.facts import FactsCell, Share
    from salalocal.evaluate.ruler.run import RulerCell


class FactsTable:
    """A line per length, written as it is done; its columns are those of `facts_as_data`."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._has_head = False

    def add(self, cell: FactsCell) -> None:
        """Writes the line, unless the table is silent."""
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


def facts_as_data(cell: FactsCell) -> dict[str, object]:
    """One length's figures and questions, for JSON."""
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


def check_png(path: Path, tasks: Sequence[str]) -> None:
    """Before hours of reading: can the picture be made? Raises InvalidRequest."""
    if not any(task in SINGLE_NEEDLE for task in tasks):
        raise InvalidRequest(f"--png shows the single needles; add one of {', '.join(SINGLE_NEEDLE)} to --tasks")
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"{path}: --png writes PNG only; name a file that ends in .png")
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path.parent}: there is no such folder to write the picture to")


def note_cell(cell: RulerCell) -> None:
    """Notes a task's score at one length, as it is done."""
    print_note(
        f"{cell.task} at {format_length(cell.length)}: {cell.score:.1f} of {len(cell.samples)}, "
        f"{human_seconds(cell.seconds)}"
    )


def print_ruler(name: str, cells: Sequence[RulerCell], lengths: Sequence[int]) -> None:
    """A line per task, their mean, and what is published."""
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


def ruler_as_data(
    name: str, seed: int, layout: str, cells: Sequence[RulerCell], lengths: Sequence[int]
) -> dict[str, object]:
    """All of a run, for JSON."""
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


def write_png(path: Path, name: str, cells: Sequence[RulerCell], lengths: Sequence[int]) -> None:
    """The picture of the single needles by depth and length."""
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
