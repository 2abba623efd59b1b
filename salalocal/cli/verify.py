"""`salalocal verify DIR`: the engine against golden cases, one line per case and chunk size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import one_line, print_json, stderr, stdout

if TYPE_CHECKING:
    from rich.console import Console

    from salalocal.evaluate.golden import CaseResult, Limits

_HEADER = (
    f"{'case':<24} {'chunk':>8} {'prefill':>9} {'decode':>9} {'state':>9} {'rms':>9} "
    f"{'sets':>11} {'beyond margin':>13} {'argmax':>6} {'time':>8}  result"
)


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of golden cases.", show_default=False)],
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16"], typer.Option("--dtype", help="Arithmetic to check.")
    ] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where to compute.")] = "cpu",
    chunk_size: Annotated[
        list[int] | None,
        typer.Option(
            "--chunk-size",
            metavar="N",
            min=0,
            help="Tokens per prefill chunk; 0 is one shot. May be given several times.",
        ),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Only cases whose name contains this. May be given several times."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the engine against golden cases: logits, states and block choices computed in float64.

    Per case: largest difference of prefill and decode logits and of the linear states, rms of the prefill
    logits, changed block sets of all compared, how many of those changed though their margin is more than the
    dtype should blur, and decode steps with another likeliest token. What is allowed is printed first, and at
    the end which implementation served each op. A case also fails where an op ran as plain PyTorch on a GPU
    though there is a kernel for it (in float64 there is none). Exits with 1 where a case fails.
    """
    from salalocal.evaluate.golden import LIMITS, verify_cases

    limits = LIMITS[dtype]
    only_finite = limits.plain_ratio is not None and device == "cpu"

    console = stderr() if json else stdout()
    rows = 0

    def on_case(result: CaseResult) -> None:
        nonlocal rows
        if rows == 0:
            console.print(_allowed(limits, dtype, device), style="dim")
            console.print(_HEADER, style="bold")
        rows += 1
        _print_case(console, result, "finite" if only_finite else "ok")

    results = verify_cases(
        folder,
        dtype=dtype,
        device=device,
        chunk_sizes=[size or None for size in (chunk_size or [0])],
        names=case or (),
        on_case=on_case,
    )
    failed = [result for result in results if not result.passed]
    if json:
        print_json(
            {
                "folder": str(folder),
                "dtype": dtype,
                "device": device,
                "passed": not failed,
                "cases": [_finite(asdict(result)) for result in results],
            }
        )
    else:
        served = [op for result in results for op in result.implementations.items()]
        _print_implementations(console, sorted(set(served)))
        judged = "finite" if only_finite else "passed"
        console.print(f"{len(results) - len(failed)} of {len(results)} {judged}")
    if failed:
        raise typer.Exit(1)


def _allowed(limits: Limits, dtype: str, device: str) -> str:
    """What a run in `dtype` is held to, as one line."""
    if limits.plain_ratio is None:
        return (
            f"allowed in {dtype}: logits below {limits.logit:.0e}, states below {limits.state:.0e}, sets equal where "
            f"their margin exceeds {limits.margin:.0e}, no other likeliest token; see docs/correctness.md"
        )
    ratio = f"at most {limits.plain_ratio:g} times the errors of plain PyTorch on the CPU"
    if device == "cpu":
        ratio += ", so on the CPU itself only that all are finite is judged"
    return f"allowed in {dtype}: {ratio}; see docs/correctness.md"


def _print_case(console: Console, result: CaseResult, good: str) -> None:
    chunk = "one shot" if result.chunk_size is None else f"{result.chunk_size:,}"
    sets = f"{result.changed_sets}/{result.compared_sets}"
    line = (
        f"{one_line(result.case):<24} {chunk:>8} {result.prefill_error:>9.1e} {result.decode_error:>9.1e} "
        f"{result.state_error:>9.1e} {result.prefill_rms:>9.1e} {sets:>11} "
        f"{result.changed_sets_within_margin:>13} {result.argmax_mismatches:>6} "
        f"{result.seconds:>6.1f} s  "
    )
    verdict = (good, "green") if result.passed else (f"FAILED: {one_line(result.reason)}", "bold red")
    console.print(Text.assemble(line, verdict))


def _print_implementations(console: Console, implementations: Iterable[tuple[str, str]]) -> None:
    """Which package served which op; the module within it is only in the JSON."""
    served: dict[str, list[str]] = {}
    for op, module in implementations:
        served.setdefault(module.rpartition(".")[0] or module, []).append(op)
    for package, ops in served.items():
        console.print(f"{package}: {', '.join(ops)}", style="dim")


def _finite(result: dict[str, object]) -> dict[str, object]:
    """JSON has no NaN and no Infinity: such a figure becomes null, and `passed` says what it means."""
    return {
        name: None if isinstance(value, float) and not abs(value) < float("inf") else value
        for name, value in result.items()
    }


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("verify", short_help="Check the engine against golden cases.")(verify)
