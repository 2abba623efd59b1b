"""Packs a bf16 model folder, a layer at a time; a run that was killed goes on where it stopped.

Every shard is written whole or not at all, and recorded with its checksum before the next one is begun; config.json,
without which a folder is no model, is written last. So at no moment does the folder load as anything but the finished
model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from salalocal.atomic import remove_partial_files, replacing
from salalocal.config import ModelConfig
from salalocal.errors import BadCheckpoint, DoesNotFit, EngineFailure, InvalidRequest, UnsupportedFormat
from salalocal.fields import read_json_object
from salalocal.hub import find_model
from salalocal.quantization import GROUP_SIZES, Quantization, best_group_size, recipe
from salalocal.quantizer.manifest import KindError, Manifest, ShardRecord
from salalocal.quantizer.report import QuantizeProgress, QuantizeReport, report_kinds
from salalocal.quantizer.shards import SHARD_BYTES, Shard, plan_shards
from salalocal.weights.build import check_tensors
from salalocal.weights.layout import Module, tensors_of, weight_bytes
from salalocal.weights.safetensors_source import INDEX_NAME, PACKED_FORMAT, PACKED_VERSION, SafetensorsSource
from salalocal.weights.safetensors_writer import write_safetensors
from salalocal_quant import Int4Weight, Int8Weight, PackedError, PackedWeight

# Everything else a folder says: about its tokens, its defaults, and under which terms it may be used.
_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("README.md", "LICENSE*", "LICENCE*", "NOTICE*"),
)
# What the files need beyond the weights: headers, tokenizer, manifest.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class _Job:
    """One run: from what, into what."""

    source_folder: Path
    source: SafetensorsSource
    out: Path
    config: ModelConfig
    shards: tuple[Shard, ...]

    @property
    def quantization(self) -> Quantization:
        assert self.config.quantization is not None
        return self.config.quantization


def quantize(
    model: str | Path,
    out: str | Path | None = None,
    *,
    format: Literal["int4", "int8"] = "int4",
    group_size: int | None = None,
    zero_point: bool = False,
    on_progress: Callable[[QuantizeProgress], None] | None = None,
) -> QuantizeReport:
    """Makes a packed copy of a model, which loads like any other.

    Args:
        model: a folder with config.json and unpacked safetensors, or the name of one on this machine.
        out: the folder to make, or that of a run that was killed; None puts it beside the model as NAME-int4.
        format: "int8" packs every matrix in 8 bits; "int4" the bulk in 4 and the finer rest in 8.
        group_size: elements along a row that share a scale, 64 or 128; None takes 128 unless 64 packs more matrices.
        zero_point: give int4 groups a zero point of their own.
        on_progress: told every weight that is done.

    Raises:
        ModelNotFound, BadConfig, BadCheckpoint, UnsupportedFormat: the model cannot be used, or is packed already.
        InvalidRequest: an argument is out of range, or `out` holds something else.
        DoesNotFit: the disk is too full; nothing was written.
        EngineFailure: a file cannot be written or copied; what was finished is kept.
    """
    job = _plan(find_model(model), out, format, group_size, zero_point)
    try:
        return _run(job, on_progress)
    except OSError as error:
        raise EngineFailure(
            f"{error.filename or job.out}: {error.strerror or error}; what is finished is kept, and the same command "
            "goes on from there"
        ) from error


def _plan(
    path: Path, out: str | Path | None, format: Literal["int4", "int8"], group_size: int | None, zero_point: bool
) -> _Job:
    if format not in ("int4", "int8"):
        raise InvalidRequest(f"format is {format!r}; known are int4, int8")
    if zero_point and format != "int4":
        raise InvalidRequest("zero points are for int4; int8 weights are symmetric")
    if path.is_file():
        raise UnsupportedFormat(f"{path}: only folders with safetensors are packed; a .gguf file is used as it is")
    config = ModelConfig.from_json(path / "config.json")
    if config.quantization is not None:
        raise UnsupportedFormat(f"{path}: is packed already; quantize the model it was made from")
    columns = config.matrix_columns
    chosen = best_group_size(columns.values()) if group_size is None else group_size
    if chosen not in GROUP_SIZES:
        raise InvalidRequest(f"group_size is {chosen}; 64 and 128 are possible")
    quantization = recipe(format, columns, chosen, zero_point)
    if all(stored == "bf16" for _, stored in quantization.formats):
        raise InvalidRequest(f"{path}: no matrix has rows that divide into groups of {chosen}; nothing can be packed")
    source = SafetensorsSource(path)
    check_tensors(config, source)
    path = Path(os.path.abspath(path))  # "." has no name that the copy's could be made from
    folder = path.parent / f"{path.name}-{format}" if out is None else Path(out).expanduser()
    if folder.resolve() == path.resolve():
        raise InvalidRequest(f"{folder}: is the model itself; name another folder with --out")
    packed = replace(config, quantization=quantization)
    return _Job(path, source, folder, packed, plan_shards(packed, SHARD_BYTES))


def _run(job: _Job, on_progress: Callable[[QuantizeProgress], None] | None) -> QuantizeReport:
    if job.out.exists() and not job.out.is_dir():
        raise InvalidRequest(f"{job.out}: is a file; name a folder with --out")
    job.out.mkdir(parents=True, exist_ok=True)
    description = _description(job)
    manifest = Manifest.open(job.out, description, [shard.file for shard in job.shards])
    packed_bytes = weight_bytes(job.config, 2)
    _check_disk(job, packed_bytes)
    remove_partial_files(job.out)
    manifest.write()
    total = sum(math.prod(module.shape) for shard in job.shards for module in shard.modules)
    done = 0
    for shard in job.shards:
        tensors: dict[str, Tensor] = {}
        errors: dict[str, KindError] = {}
        is_finished = manifest.is_finished(shard.file)
        for module in shard.modules:
            if not is_finished:
                stored, error = _pack(job, module)
                tensors |= stored
                if module.kind is not None:
                    errors[module.kind] = errors.get(module.kind, KindError(0, 0.0, 0.0)) + error
            done += math.prod(module.shape)
            if on_progress is not None:
                on_progress(QuantizeProgress(module.name, done, total))
        if not is_finished:
            checksum = write_safetensors(job.out / shard.file, tensors, _metadata(job.quantization))
            manifest.finish(shard.file, ShardRecord(checksum, errors))
    if _description(job) != description:
        raise BadCheckpoint(f"{job.source_folder}: changed while it was packed; remove {job.out} and start again")
    _finish(job)
    return QuantizeReport(
        path=job.out,
        quantization=job.quantization,
        source_bytes=sum((job.source_folder / file).stat().st_size for file in _files(job)),
        packed_bytes=packed_bytes,
        kinds=report_kinds(job.config, job.quantization, manifest.shards.values()),
    )


def _pack(job: _Job, module: Module) -> tuple[dict[str, Tensor], KindError]:
    """A module's tensors as they are stored, and their distance from the original."""
    name = f"{module.name}.weight"
    format = "bf16" if module.kind is None else job.quantization.format_of(module.kind)
    matrix = job.source.read(name)
    group_size, zero_point = job.quantization.group_size, job.quantization.zero_point
    weight: PackedWeight
    try:
        if format == "bf16":
            return {name: _finite(matrix.to(torch.bfloat16))}, KindError(1, 0.0, 0.0)
        if format == "int4":
            weight = Int4Weight.quantize(matrix, group_size, torch.bfloat16, zero_point=zero_point)
        else:
            weight = Int8Weight.quantize(matrix, group_size, torch.bfloat16)
        weight.check_values()
    except PackedError as error:
        file = job.source_folder / job.source.tensors[name].file
        raise BadCheckpoint(f"{file}: tensor {name!r} cannot be packed: {error}") from error
    stored = {f"{module.name}.{suffix}": tensor for suffix, tensor in weight.tensors().items()}
    return stored, KindError(1, *weight.squared_error(matrix))


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise PackedError("a value is NaN or Inf, or exceeds bfloat16")
    return values


def _finish(job: _Job) -> None:
    """Index and the copied files, then config.json: the folder is a model from there on."""
    if len(job.shards) > 1:
        placed = {
            name: shard.file
            for shard in job.shards
            for module in shard.modules
            for name in tensors_of(module, job.config)
        }
        _write_json(
            job.out / INDEX_NAME, {"metadata": {"total_size": weight_bytes(job.config, 2)}, "weight_map": placed}
        )
    for pattern in _COPIED:
        for path in sorted(job.source_folder.glob(pattern)):
            if path.is_file():
                with replacing(job.out / path.name) as file, path.open("rb") as original:
                    shutil.copyfileobj(original, file)
    values = read_json_object(job.source_folder / "config.json")
    _write_json(job.out / "config.json", {**values, "quantization_config": job.quantization.as_json()})


def _write_json(path: Path, value: object) -> None:
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def _metadata(quantization: Quantization) -> dict[str, str]:
    described = json.dumps(quantization.as_json(), sort_keys=True)
    return {"format": PACKED_FORMAT, "version": PACKED_VERSION, "recipe": described}


def _description(job: _Job) -> dict[str, object]:
    """What must be the same for a run to be continued; weights are told apart by size and time of change."""
    states = {file: (job.source_folder / file).stat() for file in _files(job)}
    return {
        "source": job.source_folder.name,
        "config_sha256": hashlib.sha256((job.source_folder / "config.json").read_bytes()).hexdigest(),
        "weights": {file: [state.st_size, state.st_mtime_ns] for file, state in states.items()},
        "quantization": job.quantization.as_json(),
        "shards": {shard.file: [module.name for module in shard.modules] for shard in job.shards},
    }


def _files(job: _Job) -> list[str]:
    return sorted({tensor.file for tensor in job.source.tensors.values()})


def _check_disk(job: _Job, packed_bytes: int) -> None:
    written = sum((job.out / shard.file).stat().st_size for shard in job.shards if (job.out / shard.file).is_file())
    needed = max(0, packed_bytes - written) + _SPARE_BYTES
    available = shutil.disk_usage(job.out).free
    if needed > available:
        raise DoesNotFit(
            f"{job.out}: {needed / 2**20:,.0f} MiB are to be written and {available / 2**20:,.0f} MiB are free on that "
            "disk; make room or name another folder with --out",
            needed_bytes=needed,
            available_bytes=available,
        )
