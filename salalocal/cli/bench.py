"""`salalocal bench`: kernels and the whole model beside what the card allows, saved sessions, this machine."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from salalocal.cli.bench_cards import cards
from salalocal.cli.bench_hits import hits
from salalocal.cli.bench_kv import kv
from salalocal.cli.bench_long import long
from salalocal.cli.options import Device, JsonOption
from salalocal.cli.terminal import human_bytes, human_count, print_json, print_note, stderr, stdout
from salalocal.evaluate.lengths import format_length, parse_lengths

if TYPE_CHECKING:
    from salalocal.bench.clock import Ceilings
    from salalocal.bench.kernels import Row
    from salalocal.bench.steps import StepRow
    from salalocal.bench.switching import SwitchTimes
    from salalocal.machine import Machine
    from salalocal.model.network import Network

bench = typer.Typer(help="Measure how fast this machine is.", rich_markup_mode=None, no_args_is_help=False)

_HEADER = f"{'kernel':<25} {'shape':<46} {'selection':<9} {'us':>10} {'TB/s':>6} {'TFLOP/s':>8} {'ceiling':>7}  peer"
_STEPS_HEADER = (
    f"{'step':<12} {'tokens':>6} {'history':>8} {'selection':<9} {'ms':>9} {'tok/s':>9} {'graph ms':>9} {'ceiling':>8} "
    f"{'rested ms':>9}"
)
# Made selections need twice the blocks that a query picks.
_LEAST_HISTORY, _MOST_HISTORY = 1 << 14, 1 << 21


@bench.command("kernels", short_help="Time every kernel on the GPU.")
def kernels(
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="PNG", help="Draw the shares of the ceiling into this file.", show_default=False
        ),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            metavar="TEXT",
            help="Time the rows that begin so: a kernel, or kernel and shape.",
            show_default=False,
        ),
    ] = "",
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

    def on_ceilings(ceilings: Ceilings, missing: list[str]) -> None:
        console.print(ceilings.line, style="dim")
        if missing:
            console.print(f"not installed, so not timed as peers: {', '.join(missing)}", style="dim")
        console.print(_HEADER, style="bold")

    ceilings, rows = time_kernels(on_ceilings, lambda row: console.print(_line(row)), only)
    if plot is not None:
        from salalocal.bench.picture import write_picture

        write_picture(plot, ceilings.device, rows)
        print_note(f"drawn into {plot}")
    if json:
        table: list[object] = [{**asdict(row), "of_ceiling": row.of_ceiling} for row in rows]
        print_json({"ceilings": asdict(ceilings), "rows": table})


@bench.command("session", short_help="Time saving, restoring, forking and switching between sessions.")
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
    device: Annotated[Device, typer.Option("--device", help="Where the sessions that are switched answer.")] = "auto",
    json: JsonOption = False,
) -> None:
    """Time how fast sessions of the released model's shape are saved, restored, forked and switched between.

    The session is made up, 8.3 KiB per token in bfloat16, with a checkpoint of 48 MiB every 64K tokens. Restoring,
    every byte checked, is set beside reading the same files one after the other: once with the files in the
    system's memory, and on Linux once from the disk.

    Then two made-up sessions of that length answer by turns, and one of them is forked: once with K and V on the
    device, once in main memory and 512 MiB of them on the device. On a GPU the model has MiniCPM-SALA's sizes and
    made-up weights; on a processor it keeps as much K and V, and all else is an eighth as wide. Times are the worst of
    several, and what they are more than a plain step.
    """
    from salalocal.bench.session import time_session
    from salalocal.bench.switching import time_switching
    from salalocal.engine.devices import resolve_device

    (count,) = parse_lengths(tokens, 1, 1 << 21)[:1]
    where = resolve_device(device)
    with tempfile.TemporaryDirectory(dir=folder, prefix="salalocal-bench-") as inside:
        rows = time_session(count, Path(inside) / "session")
    console = stderr() if json else stdout()
    first = rows[0]
    console.print(
        f"{human_count(first.tokens)} tokens, {human_bytes(first.nbytes)}, saved in {first.save_seconds:.1f} s"
    )
    for row in rows:
        console.print(
            f"{'from the disk' if row.is_cold else 'from memory':<13}  restored in {row.restore_seconds:.2f} s, "
            f"read in {row.read_seconds:.2f} s: {row.ratio:.2f} x"
        )
    switched = time_switching(count, where, lambda row: console.print(_switch_lines(row)))
    if json:
        saved: list[object] = [{**asdict(row), "ratio": row.ratio} for row in rows]
        switching: list[object] = [asdict(row) for row in switched]
        print_json({"saved": saved, "switching": switching})


def _switch_lines(row: SwitchTimes) -> str:
    return (
        f"K and V {'on the device' if row.kept == 'device' else 'in main memory'} ({row.model} model, {row.device}): a "
        f"step takes {row.step_ms:,.1f} ms\n"
        f"  switching   {row.switch_ms:+,.1f} ms, {row.first_ms:+,.1f} ms to a session that has not answered yet\n"
        f"  forking     {row.fork_ms:+,.1f} ms to the fork's first token, of which the call is {row.fork_call_ms:,.1f} "
        f"ms; its later ones up to {row.later_ms:+,.1f} ms, the forked session's next {row.forked_ms:+,.1f} ms"
    )


@bench.command("steps", short_help="Time decode steps and a prefill chunk of the full-size model.")
def steps(
    length: Annotated[
        str,
        typer.Option(
            "--length", metavar="N,N...", help="Tokens read before a decode step; K is 1,024 and M 1,024 K: 64K,1M."
        ),
    ] = "64K,1M",
    json: JsonOption = False,
) -> None:
    """Time a model of MiniCPM-SALA's sizes with made-up weights, in the default int4 recipe, on an NVIDIA GPU.

    Nothing is read from disk: weights and history are drawn on the card, and all K/V stays there. A decode row is the
    median of 100 tokens as the engine makes them, by the wall clock, and beside it the step's CUDA graph alone; a
    prefill row is a chunk of 8,192 tokens behind others, and one after a rest of the card, in bfloat16 and in the 8-bit
    formats that the card has. Selections are the made-up weights' own, or replayed (87 % of the free picks shared by
    consecutive steps, 64 % by neighbouring queries of a chunk). The ceiling is a decode step's bytes at the rate of a
    copy within the card, a chunk's operations at that of large products, all measured in the same run. With --json
    also what the decode step consists of.
    """
    from salalocal.bench.steps import Plan, time_released
    from salalocal.weights.layout import parameter_count

    lengths = parse_lengths(length, _LEAST_HISTORY, _MOST_HISTORY)
    console = stderr() if json else stdout()

    def on_model(network: Network) -> None:
        count = parameter_count(network.config)
        console.print(f"{count / 1e9:.2f} B parameters, {network.nbytes / 1e9:.2f} GB of weights", style="dim")
        console.print(_STEPS_HEADER, style="bold")

    found = time_released(
        Plan(lengths, with_parts=json),
        lambda ceilings: console.print(ceilings.line, style="dim"),
        on_model,
        lambda row: console.print(_step_line(row)),
    )
    for op, reason in found.fallbacks.items():
        print_note(f"{op} ran as plain PyTorch: {reason}")
    if json:
        rows = [
            {**asdict(row), "tokens_per_second": row.tokens_per_second, "of_ceiling": row.of_ceiling}
            for row in found.rows
        ]
        print_json({**asdict(found), "rows": rows})


def _step_line(row: StepRow) -> str:
    step = row.step if row.products == "full" else f"{row.step} {row.products}"
    graph = "" if row.device_ms is None else f"{row.device_ms:.3f}"
    share = "" if row.of_ceiling is None else f"{100 * row.of_ceiling:.0f} %"
    rested = "" if row.rested_ms is None else f"{row.rested_ms:.2f}"
    return (
        f"{step:<12} {row.tokens:>6,} {format_length(row.history):>8} {row.selection:<9} {row.milliseconds:>9,.3f} "
        f"{row.tokens_per_second:>9,.1f} {graph:>9} {share:>8} {rested:>9}"
    ).rstrip()


def _line(row: Row) -> str:
    peer = "" if row.peer_ms is None else f"{row.peer_ms / row.milliseconds:.1f} x {row.peer}"
    if row.peer_error is not None:
        peer = f"{row.peer}: {row.peer_error}"
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

    The bare machine: a large product, memory, and on a GPU the ways from and to main memory, single blocks from there,
    and our kernels at the sizes of the released model. And the engine: how fast the embedded model reads and answers,
    at the beginning of a text and far into it. Nothing else should run meanwhile; how much did is kept beside the
    figures.
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
    others = (
        ("to main memory", hardware.written_bytes_per_second, 1e9, "GB/s"),
        ("single blocks from there", hardware.gather_bytes_per_second, 1e9, "GB/s"),
        ("products in int8", hardware.int8_flop_per_second, 1e12, "TFLOP/s"),
        ("products in fp8", hardware.fp8_flop_per_second, 1e12, "TFLOP/s"),
    )
    rows += [(label, f"{rate / unit:,.1f} {name}") for label, rate, unit, name in others if rate is not None]
    for reading in machine.readings:
        text = f"{reading.prefill_tokens_per_second:,.0f} tokens/s read"
        if reading.decode_steps_per_second is not None:
            text += f", {reading.decode_steps_per_second:,.1f} tokens/s answered"
        rows.append((f"{machine.model}, {reading.position // 1024}K", text))
    rows.append(("taken by other programs", f"{machine.others_share:.0%} of the processor's time meanwhile"))
    return rows


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    bench.command("hits", short_help="Count what answers fetch where K/V is in main memory.")(hits)
    bench.command("kv", short_help="What keys and values of 8 bits change in selected blocks.")(kv)
    bench.command("long", short_help="Time whole texts of up to 2M tokens, and a dense model beside them.")(long)
    bench.command("cards", short_help="Compute what other cards would take.")(cards)
    app.add_typer(bench, name="bench")
