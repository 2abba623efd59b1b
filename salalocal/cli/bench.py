"""`salalocal bench`: how fast every kernel is beside what the card allows, and how fast a saved session comes back."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import human_bytes, human_count, print_json, print_note, stderr, stdout

if TYPE_CHECKING:
    from salalocal.bench.clock import Ceilings
    from salalocal.bench.kernels import Row

bench = typer.Typer(help="Measure how fast this machine is.", rich_markup_mode=None, no_args_is_help=False)

_HEADER = f"{'kernel':<25} {'shape':<46} {'selection':<9} {'us':>10} {'TB/s':>6} {'TFLOP/s':>8} {'ceiling':>7}  peer"


@bench.command("kernels", short_help="Time every kernel on the GPU.")
def kernels(
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="PNG", help="Draw the shares of the ceiling into this file.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Time every kernel at the released model's shapes, in bfloat16, on an NVIDIA GPU.

    The ceilings are measured first, in the same run: a copy within the card, a copy from host memory, products in
    every number format. A row's ceiling is the larger of its bytes at the copy's rate and its operations at the
    product's. Selections are replayed (neighbouring queries share 64 % of their free picks) or all new. A peer
    (PyTorch, fla, bitsandbytes) is timed where it is installed; the last column is its time over ours.
    """
    from salalocal.bench.kernels import time_kernels

    console = stderr() if json else stdout()

    def on_ceilings(ceilings: Ceilings) -> None:
        rates = ", ".join(f"{unit} {rate / 1e12:,.0f} TFLOP/s" for unit, rate in ceilings.flop_per_second.items())
        copy, bus = ceilings.copy_bytes_per_second / 1e12, ceilings.host_bytes_per_second / 1e9
        console.print(f"{ceilings.device}: copy {copy:.2f} TB/s, from host {bus:.1f} GB/s, {rates}", style="dim")
        console.print(_HEADER, style="bold")

    ceilings, rows = time_kernels(on_ceilings, lambda row: console.print(_line(row)))
    if plot is not None:
        from salalocal.bench.picture import write_picture

        write_picture(plot, ceilings.device, rows)
        print_note(f"drawn into {plot}")
    if json:
        table: list[object] = [{**asdict(row), "of_ceiling": row.of_ceiling} for row in rows]
        print_json({"ceilings": asdict(ceilings), "rows": table})


@bench.command("session", short_help="Time saving and restoring a session.")
def session(
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N", help="Length of the session; K is 1,024 and M 1,024 K.")
    ] = "128K",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="DIR",
            help="Where its files go for the time being; without it, where temporary files go.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Time how fast a session of the released model's shape is saved and restored, on the processor.

    The session is made up, 8.3 KiB per token in bfloat16, with a checkpoint of 48 MiB every 64K tokens. Restoring,
    every byte checked, is set beside reading the same files one after the other: once with the files in the
    system's memory, and on Linux once from the disk.
    """
    from salalocal.bench.session import time_session
    from salalocal.evaluate.lengths import parse_lengths

    (count,) = parse_lengths(tokens, 1, 1 << 21)[:1]
    with tempfile.TemporaryDirectory(dir=folder, prefix="salalocal-bench-") as inside:
        rows = time_session(count, Path(inside) / "session")
    if json:
        print_json([{**asdict(row), "ratio": row.ratio} for row in rows])
        return
    first = rows[0]
    stdout().print(
        f"{human_count(first.tokens)} tokens, {human_bytes(first.nbytes)}, saved in {first.save_seconds:.1f} s"
    )
    for row in rows:
        stdout().print(
            f"{'from the disk' if row.is_cold else 'from memory':<13}  restored in {row.restore_seconds:.2f} s, "
            f"read in {row.read_seconds:.2f} s: {row.ratio:.2f} x"
        )


def _line(row: Row) -> str:
    peer = "" if row.peer_ms is None else f"{row.peer_ms / row.milliseconds:.1f} x {row.peer}"
    return (
        f"{row.kernel:<25} {row.shape:<46} {row.selection:<9} {1000 * row.milliseconds:>10,.1f} "
        f"{row.bytes_per_second / 1e12:>6.2f} {row.flop_per_second / 1e12:>8.1f} {100 * row.of_ceiling:>5.0f} %  {peer}"
    )


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.add_typer(bench, name="bench")
