"""`salalocal list` and `salalocal show MODEL`: what is on this machine, and what one of them is."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len

from salalocal import hub
from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import human_bytes, human_count, one_line, print_json, print_note, stdout

if TYPE_CHECKING:
    from salalocal.describe import ModelDescription
    from salalocal.quantization import Quantization


def list_models(json: JsonOption = False) -> None:
    """List the models on this machine."""
    models = hub.list_models()
    if json:
        print_json(
            {
                "models": [
                    {"name": model.name, "format": model.format, "bytes": model.bytes, "path": str(model.path)}
                    for model in models
                ]
            }
        )
        return
    if not models:
        print_note("no models, not even the embedded one: install salalocal again")
        return
    width = max(cell_len(one_line(model.name)) for model in models)
    for model in models:
        name = one_line(model.name)
        padding = " " * (width - cell_len(name))
        stdout().out(f"{name}{padding}  {human_bytes(model.bytes):>9}  {model.format:<11}  {one_line(str(model.path))}")


def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from 'salalocal list', a model folder or a .gguf file.")
    ],
    json: JsonOption = False,
) -> None:
    """Show what a model is: layers by kind, heads, context, parameters, number formats, tokenizer, licence.

    Reads headers only; no weights are loaded.
    """
    from salalocal.describe import describe

    description = describe(model)
    if json:
        print_json(as_data(description))
        return
    for label, value in _rows(description):
        stdout().out(f"{label:<11}  {one_line(value)}")


def as_data(model: ModelDescription) -> dict[str, object]:
    """A model for --json."""
    config = model.config
    sparse = config.sparse
    return {
        "name": model.name,
        "path": str(model.path),
        "format": model.format,
        "architecture": config.model_type,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "tensor_types": dict(model.tensor_types),
        "quantization": None if config.quantization is None else config.quantization.as_json(),
        "layers": [_layer(kind, dense=sparse is None) for kind in config.mixer_types],
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "trained_context_tokens": config.max_position_embeddings,
        "hard_context_tokens": config.rope_positions,
        "sparse_attention": None
        if sparse is None
        else {
            "block_size": sparse.block_size,
            "selected_blocks": sparse.selected_blocks,
            "window_size": sparse.window_size,
            "dense_below_tokens": sparse.dense_len,
        },
        "tokenizer": model.tokenizer is not None,
        "chat_template": model.tokenizer is not None and model.tokenizer.chat_template is not None,
        "license": model.license,
        "notes": list(config.notes),
    }


def _rows(model: ModelDescription) -> list[tuple[str, str]]:
    config = model.config
    types = ", ".join(f"{name} ({count})" for name, count in model.tensor_types.items())
    rows = [
        ("model", f"{model.name} ({config.model_type}, {model.format})"),
        ("path", str(model.path)),
        ("parameters", f"{human_count(model.parameters)} in {human_bytes(model.weight_bytes)}; tensors: {types}"),
        ("layers", _layers(config.mixer_types, dense=config.sparse is None)),
        (
            "width",
            f"{config.hidden_size:,}, feed-forward {config.intermediate_size:,}, vocabulary {config.vocab_size:,}",
        ),
        (
            "heads",
            f"{config.num_attention_heads} heads of {config.sparse_head_dim} dimensions in attention layers, "
            f"{config.num_key_value_heads} for keys and values",
        ),
        ("context", _context(model)),
    ]
    if config.lightning_layers:
        rows.insert(
            6,
            (
                "",
                f"{config.num_attention_heads} heads of {config.head_dim} dimensions in lightning layers, "
                f"{config.lightning_nkv} for keys and values",
            ),
        )
    if config.sparse is not None:
        sparse = config.sparse
        rows.append(
            (
                "sparse",
                f"reads {sparse.selected_blocks} blocks of {sparse.block_size} tokens, "
                f"dense below {sparse.dense_len:,} tokens",
            )
        )
    if config.quantization is not None:
        rows.append(("packed", _packing(config.quantization)))
    if model.tokenizer is None:
        rows.append(("tokenizer", "none: usable with token ids only"))
    else:
        template = "with" if model.tokenizer.chat_template is not None else "without"
        rows.append(("tokenizer", f"{model.tokenizer.vocab_size:,} tokens, {template} chat template"))
    rows.append(("licence", model.license or "not stated"))
    rows += [("note", note) for note in config.notes]
    return rows


def _packing(quantization: Quantization) -> str:
    """'int4: mlp.gate_proj, ...; int8: lm_head, ...; groups of 128, with zero points'."""
    kinds = {
        name: [kind for kind, format in quantization.formats if format == name] for name in ("int4", "int8", "bf16")
    }
    parts = [f"{name}: {', '.join(members)}" for name, members in kinds.items() if members]
    zeros = ", with zero points" if quantization.zero_point else ""
    return f"{'; '.join(parts)}; groups of {quantization.group_size}{zeros}"


def _context(model: ModelDescription) -> str:
    config = model.config
    if config.rope_positions is not None:
        return f"{config.rope_positions:,} tokens (attention with positions: not more)"
    return f"trained at {config.max_position_embeddings:,} tokens; memory decides how many fit"


def _layer(kind: str, *, dense: bool) -> str:
    """The kind of one layer; "sparse" is the config's name also for layers that have nothing to select with."""
    return "dense attention" if dense and kind == "sparse" else kind


def _layers(kinds: tuple[str, ...], *, dense: bool) -> str:
    """'32: 24 lightning, 8 sparse (0, 9, 16-17)' for a mixed model, '30: all dense attention' for a plain one."""
    if dense and set(kinds) == {"sparse"}:
        return f"{len(kinds)}: all dense attention"
    attention = [index for index, kind in enumerate(kinds) if kind == "sparse"]
    name = "dense" if dense else "sparse"
    return f"{len(kinds)}: {len(kinds) - len(attention)} lightning, {len(attention)} {name} ({_ranges(attention)})"


def _ranges(numbers: list[int]) -> str:
    """[0, 9, 16, 17] -> '0, 9, 16-17'."""
    parts = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)


def register(app: typer.Typer) -> None:
    """Adds both verbs to the command line."""
    app.command("list")(list_models)
    app.command("show", short_help="Show what a model is.")(show)
