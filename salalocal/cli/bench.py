"""`salalocal bench kernels` and `bench machine`: kernels beside what the card allows; what this machine does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salalocal.cli.options import Device, JsonOption
from salalocal.cli.terminal import print_json, print_note, stderr, stdout

if TYPE_CHECKING:
    from salalocal.bench.clock import Ceilings
    from salalocal.bench.kernels import Row
    from salalocal.machine import Machine

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


def _line(row: Row) -> str:
    peer = "" if row.peer_ms is None else f"{row.peer_ms / row.milliseconds:.1f} x {row.peer}"
    return (
        f"{row.kernel:<25} {row.shape:<46} {row.selection:<9} {1000 * row.milliseconds:>10,.1f} "
        f"{row.bytes_per_second / 1e12:>6.2f} {row.flop_per_second / 1e12:>8.1f} {100 * row.of_ceiling:>5.0f} %  {peer}"
    )


@bench.command("machine", short_help="Measure what 'salalocal plan' predicts from.")
def machine(
    device: Annotated[Device, typer.Option("--device", help="What to measure.")] = "auto",
    json: JsonOption = False,
) -> None:
    """Measure this machine once and keep the figures for 'salalocal plan'. Takes about half a minute.

    The bare machine: a large product, memory, and on a GPU the way from main memory, pinned and not. And the engine:
    how fast the embedded model reads and answers, at the beginning of a text and far into it. Nothing else should
    run meanwhile; how much did is kept beside the figures.
    """
    from salalocal.bench.machine import measure_machine
    from salalocal.machine import save

    console = stderr()
    if console.is_terminal:
        with console.status("measuring") as status:
            measured = measure_machine(device, lambda part: status.update(f"measuring: {part}"))
    else:
        measured = measure_machine(device)
    path = save(measured)
    if json:
        print_json(measured.as_json())
        return
    for label, value in _machine_rows(measured):
        stdout().out(f"{label:<24}  {value}")
    print_note(f"kept in {path}")


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    hardware = machine.hardware
    rows = [
        ("device", machine.device_name),
        (f"products in {machine.dtype}", f"{hardware.matmul_flop_per_second / 1e12:,.2f} TFLOP/s"),
        ("memory, copied", f"{hardware.copy_bytes_per_second / 1e9:,.1f} GB/s read and written"),
        ("memory, read", f"{hardware.read_bytes_per_second / 1e9:,.1f} GB/s by a product of one row"),
    ]
    if hardware.pinned_bytes_per_second is not None:
        rows.append(("from main memory, pinned", f"{hardware.pinned_bytes_per_second / 1e9:,.1f} GB/s"))
    if hardware.pageable_bytes_per_second is not None:
        rows.append(("not pinned", f"{hardware.pageable_bytes_per_second / 1e9:,.1f} GB/s"))
    for reading in machine.readings:
        text = f"{reading.prefill_tokens_per_second:,.0f} tokens/s read"
        if reading.decode_steps_per_second is not None:
            text += f", {reading.decode_steps_per_second:,.1f} tokens/s answered"
        rows.append((f"{machine.model}, {reading.position // 1024}K", text))
    rows.append(("taken by other programs", f"{machine.others_share:.0%} of the processor's time meanwhile"))
    return rows


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.add_typer(bench, name="bench")
