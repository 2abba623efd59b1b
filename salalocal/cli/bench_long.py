"""`salalocal bench long`: whole texts of up to 2M tokens, and a dense model beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from salalocal.byte_sizes import parse_gpu_memory
from salalocal.cli.options import GpuMemoryOption, JsonOption, KvOption, PrefillOption
from salalocal.cli.terminal import print_json, print_note, stderr, stdout
from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import format_length, parse_lengths

if TYPE_CHECKING:
    from salalocal.bench.clock import Ceilings
    from salalocal.bench.long_model import TimeModel
    from salalocal.bench.long_rows import LongRow, LongTable

Selection = Literal["own", "replayed", "all-new"]

# From so many tokens on the released model selects blocks; above, nothing was tried.
_LEAST, _MOST = 1 << 13, 1 << 21
_LEAST_CHUNK, _MOST_CHUNK = 1 << 8, 1 << 17
_HEADER = (
    f"{'model':<10} {'tokens':>7} {'selection':<10} {'prefill':<7} {'cap':>9} {'s to first':>11} {'tok/s':>7} "
    f"{'GPU GiB':>8} {'host GiB':>8} {'pin s':>6} {'hits':>6} {'bus GB':>7} "
    f"{'plan s':>13} {'plan tok/s':>11} {'peer':>7}"
)


def long(
    length: Annotated[
        str, typer.Option("--length", metavar="N,N...", help="Tokens of the texts; K is 1,024 and M 1,024 K.")
    ] = "64K,128K,256K,512K,1M",
    selection: Annotated[
        str,
        typer.Option("--selection", metavar="WORD,WORD...", help="What is read of the text: own, replayed, all-new."),
    ] = "replayed",
    prefill: PrefillOption = "full",
    gpu_memory: GpuMemoryOption = None,
    kv: KvOption = "full",
    unpinned: Annotated[
        bool,
        typer.Option("--unpinned", help="Leave main memory as it is where page-locking is refused: what that costs."),
    ] = False,
    chunk: Annotated[
        str, typer.Option("--chunk", metavar="N", help="Tokens read at once; 8K is what the engine takes by itself.")
    ] = "8K",
    staged: Annotated[
        bool, typer.Option("--staged", help="Read the longest text only, and note the shorter ones on the way.")
    ] = False,
    peer: Annotated[
        str | None,
        typer.Option(
            "--peer",
            metavar="N,N...",
            help="Time a dense model of Qwen3-8B's shapes at these lengths too.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Gather rows in this JSON file; what it has is not measured again.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="PNG", help="Draw seconds by length into this file.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read whole texts with a model of MiniCPM-SALA's sizes and made-up weights, and answer, on an NVIDIA GPU.

    Nothing is read from disk. A text of made-up tokens is read from the first to the last through the engine's own
    session; the time is that from its ids to the first token of the answer. Then 64 more are made. Selections are the
    made-up weights' own, replayed (neighbouring queries share 64 % of their free picks, consecutive steps 87 %), or
    all new; scored and chosen is always. GPU memory is the most that the process held, CUDA's own part included.
    Beside them, with --peer: a dense model of random weights that reads its prompt in one shot, with the faster of
    PyTorch's flash and cuDNN attention at that length; the last column is its time over ours, of the same run.
    Where 'salalocal bench machine' was run on the card, what the plan says of each row stands beside it, and by how
    much that is more than what was measured.
    """
    from salalocal.bench.long import Plan
    from salalocal.bench.long_rows import LongTable
    from salalocal.bench.long_run import check_card, time_long

    plan = Plan(
        lengths=parse_lengths(length, _LEAST, _MOST),
        selections=_selections(selection),
        prefill=prefill,
        chunk_tokens=_chunk(chunk),
        gpu_memory=parse_gpu_memory(gpu_memory),
        kv=kv,
        is_pinned=not unpinned,
        staged=staged,
    )
    peer_lengths = () if peer is None else parse_lengths(peer, _LEAST, _MOST)
    table = LongTable(out)
    check_card(plan)
    console = stderr() if json else stdout()
    console.print(_HEADER, style="bold")
    for row in table.rows:
        console.print(_line(row, table), style="dim")

    def on_ceilings(ceilings: Ceilings) -> None:
        console.print(ceilings.line, style="dim")

    fallbacks = time_long(plan, peer_lengths, table, on_ceilings, lambda row: console.print(_line(row, table)))
    for op, reason in fallbacks.items():
        print_note(f"{op} ran as plain PyTorch: {reason}")
    _finish(table, plot, json)


def _finish(table: LongTable, plot: Path | None, json: bool) -> None:
    from salalocal.bench.long_model import scoring_flop, time_models
    from salalocal.bench.long_picture import write_long_picture
    from salalocal.bench.made_model import released_config

    models = time_models(table.rows)
    flop = scoring_flop(released_config())
    console = stderr() if json else stdout()
    for model in models:
        for line in _model_lines(model, table, flop):
            console.print(line)
    for row in table.rows:
        ratio = table.ratio(row)
        if ratio is not None:
            print_note(f"{format_length(row.tokens)}, {row.selection}: the dense peer took {ratio:.2f} times as long")
        if row.gpu_memory and row.peak_device_bytes and row.peak_device_bytes > row.gpu_memory:
            print_note(f"{format_length(row.tokens)}, {row.selection}: the process held more than its cap")
    if plot is not None:
        write_long_picture(plot, table.rows)
        print_note(f"drawn into {plot}")
    if json:
        rows: list[object] = [
            {
                **asdict(row),
                "tokens_per_second": row.tokens_per_second,
                "plan_ratio": row.plan_ratio,
                "plan_decode_ratio": row.plan_decode_ratio,
                "peer_ratio": table.ratio(row),
            }
            for row in table.rows
        ]
        fitted: list[object] = [{**asdict(model), "scoring_flop_per_square": flop} for model in models]
        print_json({**table.as_data(), "rows": rows, "models": fitted})


def _model_lines(model: TimeModel, table: LongTable, flop: float) -> Iterator[str]:
    """What a text of N tokens takes, how well that holds, and how much of b is scoring."""
    _, selection, prefill, *_ = model.setting
    yield (
        f"{selection}, {prefill}: {1e6 * model.a:.2f} us x N + {model.b * 2**40:.2f} s x (N / 1M)^2; "
        "model less measured: "
        + ", ".join(f"{format_length(tokens)} {100 * share:+.1f} %" for tokens, share in model.residuals.items())
    )
    if model.b <= 0:
        return
    text = f"  scores are {flop:,.0f} x N FLOP per token: all of b at {flop / model.b / 1e12:,.0f} TFLOP/s"
    # As it was timed in the run that the longest text is from.
    longest = max((row for row in table.rows if row.setting == model.setting), key=lambda row: row.tokens)
    scoring = table.runs.get(longest.run, {}).get("scoring_seconds_per_square")
    if isinstance(scoring, float):
        text += f"; scores and selection timed by themselves make {100 * scoring / model.b:.0f} % of it"
    yield text


def _line(row: LongRow, table: LongTable) -> str:
    model = "ours" if row.model == "salalocal" else "dense peer"
    cap = "" if row.gpu_memory is None else f"{row.gpu_memory / 2**30:.2f}GiB"
    ratio = table.ratio(row)
    hits = None if row.decode_traffic is None else row.decode_traffic.hit_rate
    moved = None if row.prefill_traffic is None else row.prefill_traffic.nbytes / 1e9
    cells = (
        f"{model:<10} {format_length(row.tokens):>7} {row.selection:<10} {row.prefill:<7} {cap:>9} "
        f"{_cell(row.ttft_seconds, '.2f') + ('*' if row.staged else ' '):>11} {_cell(row.tokens_per_second, '.0f'):>7} "
        f"{_gib(row.peak_device_bytes):>8} {_gib(row.peak_host_bytes):>8} {_cell(row.pin_seconds, '.1f'):>6} "
        f"{_cell(hits, '.0%'):>6} {_cell(moved, '.1f'):>7} "
        f"{_planned(row.planned_seconds, row.plan_ratio, '.2f'):>13} "
        f"{_planned(row.planned_tokens_per_second, row.plan_decode_ratio, '.0f'):>11} {_cell(ratio, '.2f'):>7}"
    )
    kept = "" if row.kv == "full" else f"K and V in {row.kv}"
    locked = "" if row.is_pinned else "not page-locked"
    return "  ".join(filter(None, (cells.rstrip(), kept, locked, row.note)))


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _planned(planned: float | None, ratio: float | None, form: str) -> str:
    """What the plan says, and by how much that is more than what was measured."""
    return _cell(planned, form) + ("" if ratio is None else f" {ratio - 1:+.0%}")


def _gib(count: int | None) -> str:
    return _cell(None if count is None else count / 2**30, ".2f")


def _selections(text: str) -> tuple[Selection, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in get_args(Selection):
            raise InvalidRequest(f"--selection: {word!r} is not known; known are {', '.join(get_args(Selection))}")
    return cast(tuple[Selection, ...], words)


def _chunk(text: str) -> int:
    lengths = parse_lengths(text, _LEAST_CHUNK, _MOST_CHUNK)
    if len(lengths) > 1:
        raise InvalidRequest(f"--chunk is {text!r}; one length is read at a time")
    return lengths[0]
