"""Options that several verbs share, each spelled and explained once."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float64"]
Prefill = Literal["full", "int8", "fp8"]
Kv = Literal["full", "int8", "fp8"]

MAX_TEMPERATURE = 100.0


def _check_temperature(value: float) -> float:
    """Not typer's own `min` and `max`: they would say of NaN that it must be at least 0."""
    if not 0.0 <= value <= MAX_TEMPERATURE:
        raise typer.BadParameter(f"it must be a number from 0 to {MAX_TEMPERATURE:g}, not {value:g}")
    return value


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME_OR_PATH",
        help="A name from 'salalocal list', a model folder or a .gguf file. "
        "Without it: the one model you installed, else the embedded one.",
        show_default=False,
    ),
]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the model runs.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="Number format of the arithmetic; auto takes what the device does best.")
]
PrefillOption = Annotated[
    Prefill,
    typer.Option(
        "--prefill", help="How long texts multiply packed weights: in the arithmetic's format, or rounded to 8 bits."
    ),
]
GpuMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--gpu-memory",
        metavar="SIZE",
        help="Take no more of the GPU than this, as in 8GiB, CUDA's own part included. Without it: all that is free.",
        show_default=False,
    ),
]
KvOption = Annotated[
    Kv,
    typer.Option(
        "--kv",
        help="How keys and values are kept in main memory, where --gpu-memory leaves no room for them: in the "
        "arithmetic's format, or rounded to 8 bits.",
    ),
]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer, in tokens.")]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--temperature",
        metavar="T",
        callback=_check_temperature,
        help=f"From 0 to {MAX_TEMPERATURE:g}; 0 always takes the likeliest token, higher varies more.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Same seed, same answer, where the temperature is above 0.")
]
EvidenceOption = Annotated[
    bool, typer.Option("--evidence", help="After an answer, list the sentences that the model read most for it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
