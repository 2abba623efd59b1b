"""`salalocal plan MODEL`: does it fit, what else would, and how long it takes on this machine."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import psutil
import typer

from salalocal import hub
from salalocal.bus_times import ASSUMED_HIT_RATE
from salalocal.byte_sizes import human_size, parse_gpu_memory
from salalocal.cli.options import Device, JsonOption, Kv, KvOption
from salalocal.cli.terminal import human_seconds, one_line, print_json, print_note, stdout
from salalocal.config import ModelConfig
from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import parse_lengths
from salalocal.forecast import Place, Plan, Setting, make_plan
from salalocal.planner import usable_bytes, usable_gpu_bytes
from salalocal.plans import read_config

if TYPE_CHECKING:
    from salalocal.machine import Machine

_MOST_TOKENS = 1 << 30
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")
_LABELS = {
    "weights": "weights",
    "keys_and_values": "keys and values",
    "compressed_keys": "compressed keys",
    "linear_states": "linear states",
    "workspace": "workspace",
}
# What others may take of the processor before the measured rates are called in question.
_QUIET_SHARE = 0.1
_UNMEASURED = "this device has not been measured yet: that is done once now and takes about half a minute"


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name from 'salalocal list', a folder with config.json (weights are not needed), a .gguf file, or "
            "the hub id of a released model.",
        ),
    ],
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="N",
            help="Tokens to be read; K is 1,024 and M 1,024 K: 64K, 1M. Without it: the length the model was made for.",
            show_default=False,
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory",
            metavar="SIZE",
            help="Plan for a GPU of so much memory, as in 8GiB, here or not. Without it: what is free now.",
            show_default=False,
        ),
    ] = None,
    kv: KvOption = "full",
    device: Annotated[Device, typer.Option("--device", help="Where the model is to run.")] = "auto",
    json: JsonOption = False,
) -> None:
    """Say whether a model and a context fit into memory, what else would, and how long reading takes.

    Nothing is loaded and nothing downloaded. Times come from rates that 'salalocal bench machine' measures on this
    machine; where it was never run, it is run first. Exits with 1 where the context does not fit.
    """
    path = hub.find_config(model)
    config = read_config(path)
    tokens = config.max_position_embeddings if context is None else _tokens(context)
    where = _where(device, parse_gpu_memory(gpu_memory), kv)
    planned = make_plan(config, tokens, where.place)
    if json:
        print_json(as_data(model, planned, where))
    else:
        _print(model, config, planned, where)
    if not planned.fits:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Where:
    """A place with what people are told of it.

    Attributes:
        place: for the plan.
        dtype: number format there.
        total_bytes: of the GPU that was asked for; None for what is free now.
        machine: where the rates are from; None without them.
    """

    place: Place
    dtype: str
    total_bytes: int | None
    machine: Machine | None

    @property
    def tier(self) -> str:
        """Whose memory it is."""
        return "gpu" if self.place.on_gpu else "host"


def _where(device: Device, gpu_bytes: int | None, kv: Kv) -> Where:
    from salalocal.engine.devices import resolve_device, resolve_dtype
    from salalocal.engine.out_of_memory import available_bytes

    if gpu_bytes is not None and device == "cpu":
        raise InvalidRequest("--gpu-memory is for a GPU, and --device is 'cpu': leave one of them out")
    here = resolve_device("auto" if gpu_bytes is not None else device)
    on_gpu = gpu_bytes is not None or here.type == "cuda"
    machine = recall_or_measure(here.type) if on_gpu == (here.type == "cuda") else None
    if gpu_bytes is None:
        dtype = resolve_dtype("auto", here)
        usable, item_bytes, name = available_bytes(here), dtype.itemsize, str(dtype).removeprefix("torch.")
    else:
        usable, item_bytes, name = usable_gpu_bytes(gpu_bytes), 2, "bfloat16"
    host = None if gpu_bytes is None else usable_bytes(psutil.virtual_memory().available)
    place = Place(on_gpu, item_bytes, usable, None if machine is None else machine.rates, host, kv=kv)
    return Where(place, name, gpu_bytes, machine)


def recall_or_measure(kind: str) -> Machine:
    """What is known of this machine's "cpu" or "cuda" device; measured and kept where nothing is."""
    from salalocal import machine
    from salalocal.bench import machine as bench
    from salalocal.engine.devices import device_name, resolve_device

    known = machine.recall(kind, device_name(resolve_device(kind)))
    if known is None:
        print_note(_UNMEASURED)
        known = bench.measure_machine(kind)
        machine.save(known)
    return known


def as_data(model: str, planned: Plan, where: Where) -> dict[str, object]:
    """A plan for --json."""
    empty = dict.fromkeys(planned.parts(), 0)
    tiers = {tier: planned.parts() if tier == where.tier else empty for tier in ("gpu", "host")}
    if planned.host_bytes:
        tiers["host"] = empty | {"keys_and_values": planned.host_bytes}
    machine = where.machine
    return {
        "model": model,
        "context_tokens": planned.asked.tokens,
        "device": "cuda" if where.place.on_gpu else "cpu",
        "dtype": where.dtype,
        "kv": where.place.kv,
        "bytes": tiers,
        "total_bytes": planned.asked.total_bytes,
        "usable_bytes": where.place.usable_bytes,
        "fits": planned.fits,
        "obstacle": planned.obstacle,
        "longest_context_tokens": planned.choice.longest_tokens,
        "saved_bytes": planned.asked.saved_bytes,
        "times": None if planned.asked.times is None else asdict(planned.asked.times),
        "nearest": [asdict(setting) for setting in planned.nearest],
        "rates": None
        if machine is None
        else {
            "device_name": machine.device_name,
            "measured_at": machine.measured_at,
            "measured_with": machine.model,
            "others_share": machine.others_share,
            **asdict(machine.rates),
        },
    }


def _print(model: str, config: ModelConfig, planned: Plan, where: Where) -> None:
    out = stdout().out
    on_gpu, asked = where.place.on_gpu, planned.asked
    holder = "the GPU" if on_gpu else "the processor"
    out(f"{one_line(model)}, {asked.tokens:,} tokens, {where.dtype} on {holder}\n")
    out(f"{'':<16}  {'GPU memory':>12}  {'main memory':>12}  {'disk':>12}")
    rows = {_LABELS[name]: count for name, count in planned.parts().items()}
    for label, count in (rows | {"together": asked.total_bytes, "usable": where.place.usable_bytes}).items():
        is_shared = planned.host_bytes and label in (_LABELS["keys_and_values"], "together")
        beside = human_size(planned.host_bytes) if is_shared else "-"
        cells = (human_size(count), beside) if on_gpu else ("-", human_size(count))
        out(f"{label:<16}  {cells[0]:>12}  {cells[1]:>12}")
    out(f"{'saved session':<16}  {'-':>12}  {'-':>12}  {human_size(asked.saved_bytes):>12}")
    out("")
    out(_verdict(planned, where))
    for setting in planned.nearest:
        out(f"  {_option(setting)}")
    if planned.fits and asked.times is not None:
        out(f"The answer begins {_expectation(asked)}.")
    elif not planned.fits and not planned.nearest:
        out("No setting of this model fits.")
    for note in _notes(config, planned, where):
        print_note(note)


def _verdict(planned: Plan, where: Where) -> str:
    asked, longest = planned.asked, planned.choice.longest_tokens
    if planned.fits:
        return f"It fits; the longest context that does is {longest:,} tokens."
    if planned.obstacle == "positions":
        return f"It does not fit: the model's positions end at {longest:,} tokens. What does:"
    needed, usable = human_size(asked.total_bytes), human_size(where.place.usable_bytes)
    what = " What does:" if planned.nearest else ""
    return f"It does not fit: {needed} are needed and {usable} usable.{what}"


def _option(setting: Setting) -> str:
    how = f"packed ('salalocal quantize --format {setting.packing}'), " if setting.packing else ""
    if setting.gpu_memory is not None:
        how += f"with --gpu-memory {setting.gpu_memory / 2**30:g}GiB, keys and values in main memory, "
    text = f"{how}{setting.tokens:,} tokens in {human_size(setting.total_bytes)}"
    if setting.host_bytes:
        text += f" and {human_size(setting.host_bytes)} of main memory"
    return text if setting.times is None else f"{text}; the answer begins {_expectation(setting)}"


def _expectation(setting: Setting) -> str:
    assert setting.times is not None
    seconds, rate = setting.times.first_token_seconds, setting.times.tokens_per_second
    shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"
    return f"after about {human_seconds(seconds)} and comes at about {shown} tokens/s"


def _notes(config: ModelConfig, planned: Plan, where: Where) -> list[str]:
    notes = []
    trained = config.max_position_embeddings
    if planned.fits and planned.asked.tokens > trained:
        notes.append(f"the model was made for {trained:,} tokens; beyond them its answers may be less sure")
    if planned.choice.unpacks:
        notes.append("the packed weights are unpacked when they are read, which a processor answers faster with")
    if where.total_bytes is not None:
        notes.append(
            f"of a GPU's {where.total_bytes / 2**30:.4g} GiB, CUDA takes half a GiB and a twentieth is left free"
        )
    if planned.choice.kv_device_bytes is not None:
        rounded = "" if where.place.kv == "full" else f", in {where.place.kv}"
        notes.append(
            f"keys and values are in main memory{rounded}, and the GPU takes what is left of it for those read last"
        )
        notes += _assumptions(planned.asked, where)
    if where.machine is None:
        notes.append("no times: they come from rates measured on the GPU itself, and there is none here")
    else:
        notes.append(measured_note(where.machine))
    return notes


def _assumptions(asked: Setting, where: Where) -> list[str]:
    """What times with keys and values in main memory rest on besides rates."""
    if asked.times is not None:
        return [f"of the blocks that a step selects freely {ASSUMED_HIT_RATE:.0%} are assumed to be on the GPU already"]
    if where.machine is None:
        return []
    return ["no times: CUDA did not register main memory when this machine was measured"]


def measured_note(machine: Machine) -> str:
    """Which rates, when, with what, and how far they can be trusted."""
    what = f"{machine.model} on" if machine.device == "cpu" else "our kernels at the sizes of MiniCPM-SALA on"
    text = (
        f"times follow from rates measured with {what} {machine.measured_at} UTC ({machine.device_name}); "
        "for a model of another size they are an estimate"
    )
    if machine.others_share > _QUIET_SHARE:
        text += (
            f"; other programs took {machine.others_share:.0%} of the processor meanwhile: "
            "'salalocal bench machine' measures again"
        )
    return text


def _tokens(text: str) -> int:
    # As tables here write them.
    number = text.replace(",", "") if _GROUPED.fullmatch(text.strip()) else text
    try:
        tokens = parse_lengths(number, 1, _MOST_TOKENS)
    except InvalidRequest as error:
        raise InvalidRequest(f"--context: {error}") from None
    if len(tokens) > 1:
        raise InvalidRequest(f"--context is {text!r}; one length is planned at a time")
    return tokens[0]


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("plan", short_help="Say what fits into memory and how long it takes.")(plan)
