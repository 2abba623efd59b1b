"""What a packed folder holds, and everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from salalocal.errors import BadCheckpoint, DoesNotFit, EngineFailure, InvalidRequest, UnsupportedFormat
from salalocal.quantizer import QuantizeProgress, quantize, run
from salalocal.weights.safetensors_header import read_header
from salalocal_quant import Int4Weight, Int8Weight

MakeModel = Callable[..., Path]
LAYER = "model.layers.1"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_int4_recipe(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(intermediate_size=256), tmp_path / "packed"
    report = quantize(source, out)
    kinds = {kind.kind: kind for kind in report.kinds}
    int4 = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "sparse.o_proj"}
    int4 |= {f"lightning.{name}_proj" for name in "qkvo"}
    int8 = {"embed_tokens", "lm_head", "lightning.z_proj", "sparse.o_gate"} | {f"sparse.{name}_proj" for name in "qkv"}
    assert {name for name, kind in kinds.items() if kind.format == "int4"} == int4
    assert {name for name, kind in kinds.items() if kind.format == "int8"} == int8
    assert kinds["mlp.gate_proj"].matrices == 3
    assert kinds["sparse.q_proj"].matrices == 1
    for kind in report.kinds:
        low, high = (0.08, 0.11) if kind.format == "int4" else (0.005, 0.0075)
        assert kind.relative_error is not None
        assert low < kind.relative_error < high, kind
    assert report.quantization.group_size == 128
    original, stored = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    matrix = original[f"{LAYER}.mlp.up_proj.weight"]
    wanted = Int4Weight.quantize(matrix, 128, torch.bfloat16).tensors()
    for suffix in ("qweight", "scales"):
        assert torch.equal(stored[f"{LAYER}.mlp.up_proj.{suffix}"], wanted[suffix])
    assert f"{LAYER}.mlp.up_proj.weight" not in stored
    assert f"{LAYER}.mlp.up_proj.zeros" not in stored
    embedding = Int8Weight.quantize(original["model.embed_tokens.weight"], 128, torch.bfloat16)
    assert torch.equal(stored["model.embed_tokens.qweight"], embedding.qweight)
    for norm in ("model.norm.weight", f"{LAYER}.self_attn.q_norm.weight"):
        assert torch.equal(stored[norm], original[norm])
    assert sum(tensor.nbytes for tensor in stored.values()) == report.packed_bytes
    assert report.source_bytes == (source / "model.safetensors").stat().st_size


def test_int8_packs_every_matrix(make_model: MakeModel, tmp_path: Path) -> None:
    report = quantize(make_model(intermediate_size=256), tmp_path / "packed", format="int8")
    assert {kind.format for kind in report.kinds} == {"int8"}
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.int8", "torch.bfloat16"}


def test_zero_points_are_stored_beside_the_scales(make_model: MakeModel, tmp_path: Path) -> None:
    quantize(make_model(intermediate_size=256), tmp_path / "packed", zero_point=True, group_size=64)
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    zeros = stored[f"{LAYER}.mlp.down_proj.zeros"]
    assert (zeros.dtype, list(zeros.shape)) == (torch.uint8, [128, 4])
    assert "lm_head.zeros" not in stored


def test_config_metadata_and_manifest_say_how(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "packed"
    quantize(source, out, group_size=128)
    config = config_of(out)
    packing = config.pop("quantization_config")
    assert config == config_of(source)
    assert (packing["quant_method"], packing["version"], packing["group_size"]) == ("salalocal", 1, 128)
    assert packing["modules"]["lightning.q_proj"] == "int4"
    _, metadata = read_header(out / "model.safetensors")
    assert {name: metadata[name] for name in ("format", "version")} == {"format": "salalocal-packed", "version": "1"}
    assert json.loads(metadata["recipe"]) == packing
    manifest = json.loads((out / "quantize.json").read_text())
    assert manifest["job"]["quantization"] == packing
    assert set(manifest["shards"]) == {"model.safetensors"}


def test_rows_that_do_not_divide_stay_bf16_and_are_named(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(dtype=torch.float32), tmp_path / "packed"
    report = quantize(source, out, group_size=128)
    left = [kind for kind in report.kinds if kind.format == "bf16"]
    assert [kind.kind for kind in left] == ["mlp.down_proj"]
    assert left[0].reason == "rows of 192 values do not divide into groups of 128"
    assert (left[0].matrices, left[0].relative_error) == (3, None)
    assert config_of(out)["quantization_config"]["modules"]["mlp.down_proj"] == "bf16"
    original, stored = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    name = f"{LAYER}.mlp.down_proj.weight"
    assert torch.equal(stored[name], original[name].bfloat16())


def test_group_size_is_chosen_to_pack_the_most(make_model: MakeModel, tmp_path: Path) -> None:
    assert quantize(make_model("narrow"), tmp_path / "narrow-packed").quantization.group_size == 64
    wide = make_model("wide", intermediate_size=256)
    assert quantize(wide, tmp_path / "wide-packed").quantization.group_size == 128


def test_a_tied_head_is_stored_once(make_model: MakeModel, tmp_path: Path) -> None:
    report = quantize(make_model(tie_word_embeddings=True), tmp_path / "packed")
    assert "lm_head" not in {kind.kind for kind in report.kinds}
    assert not any(name.startswith("lm_head") for name in load_file(tmp_path / "packed" / "model.safetensors"))


def test_tokenizer_and_licence_come_along(make_model: MakeModel) -> None:
    source = make_model()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt", "README.md"):
        (source / name).write_text(f"content of {name}")
    (source / "modeling_sala.py").write_text("raise SystemExit")
    (source / "training_state.pt").write_bytes(b"\x80")
    report = quantize(source)
    assert report.path == source.with_name("plain-int4")
    copied = {path.name for path in report.path.iterdir()} - {"config.json", "model.safetensors", "quantize.json"}
    assert copied == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt", "README.md"}
    assert (report.path / "tokenizer.json").read_text() == "content of tokenizer.json"


def test_progress_counts_every_parameter(make_model: MakeModel, tmp_path: Path) -> None:
    seen: list[QuantizeProgress] = []
    quantize(make_model(), tmp_path / "packed", on_progress=seen.append)
    assert seen[0].module == "model.embed_tokens"
    assert seen[0].done_parameters == 61 * 128
    assert seen[-1] == QuantizeProgress("lm_head", seen[0].total_parameters, seen[0].total_parameters)
    assert [one.done_parameters for one in seen] == sorted({one.done_parameters for one in seen})


def test_the_folder_it_stands_in_can_be_named_with_a_dot(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model()
    monkeypatch.chdir(source)
    assert quantize(".", format="int8").path == source.with_name("plain-int8")


def test_a_model_that_changes_meanwhile_is_not_mixed(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "packed"

    def retrain(progress: QuantizeProgress) -> None:
        if progress.module == "model.norm":
            os.utime(source / "model.safetensors", ns=(1, 1))

    with pytest.raises(BadCheckpoint, match="changed while it was packed"):
        quantize(source, out, on_progress=retrain)
    assert not (out / "config.json").exists()


class Refused(NamedTuple):
    error: type[Exception]
    said: str
    arguments: dict[str, Any]


@pytest.mark.parametrize(
    "case",
    [
        Refused(InvalidRequest, "format is 'int3'; known are int4, int8", {"format": "int3"}),
        Refused(InvalidRequest, "group_size is 32; 64 and 128 are possible", {"group_size": 32}),
        Refused(InvalidRequest, "zero points are for int4", {"format": "int8", "zero_point": True}),
        Refused(InvalidRequest, "is the model itself", {"out": "plain"}),
        Refused(InvalidRequest, "is the model itself", {"out": "plain/../plain"}),
        Refused(InvalidRequest, "is a file; name a folder", {"out": "plain/config.json"}),
    ],
    ids=lambda case: case.said,
)
def test_arguments_are_refused(make_model: MakeModel, tmp_path: Path, case: Refused) -> None:
    source = make_model()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    arguments = {"out": "packed", **case.arguments}
    with pytest.raises(case.error, match=case.said):
        quantize(source, tmp_path / arguments.pop("out"), **arguments)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_packed_models_and_gguf_files_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    packed = quantize(make_model(), tmp_path / "packed").path
    with pytest.raises(UnsupportedFormat, match="is packed already"):
        quantize(packed, tmp_path / "twice")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedFormat, match="only folders with safetensors"):
        quantize(tmp_path / "x.gguf", tmp_path / "twice")


def test_nothing_to_pack_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(hidden_size=96, num_attention_heads=6, head_dim=8, intermediate_size=96)
    with pytest.raises(InvalidRequest, match="no matrix has rows that divide into groups"):
        quantize(source, tmp_path / "packed")


def test_other_peoples_folders_are_left_alone(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "full"
    out.mkdir()
    (out / "thesis.odt").write_text("years of work")
    with pytest.raises(InvalidRequest, match="is not empty"):
        quantize(source, out)
    assert [path.name for path in out.iterdir()] == ["thesis.odt"]
    done = quantize(source, tmp_path / "packed").path
    with pytest.raises(InvalidRequest, match="already holds a model"):
        quantize(source, done)


@pytest.mark.parametrize("kind", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_nan_in_a_tensor_is_named(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    source = make_model()
    tensors = load_file(source / "model.safetensors")
    tensors[kind].view(-1)[5] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=rf"model\.safetensors: tensor '{kind}' cannot be packed: .*NaN"):
        quantize(source, tmp_path / "packed")
    assert not (tmp_path / "packed" / "config.json").exists()


def test_a_full_disk_is_noticed_before_anything_is_written(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match="1 MiB are free") as caught:
        quantize(make_model(), tmp_path / "packed")
    assert caught.value.available_bytes == 1 << 20
    assert list((tmp_path / "packed").iterdir()) == []


def test_an_error_in_writing_names_the_file(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> str:
        raise OSError(28, "No space left on device", str(path))

    source, out = make_model(), tmp_path / "packed"
    monkeypatch.setattr(run, "write_safetensors", full)
    with pytest.raises(EngineFailure, match=r"model\.safetensors: No space left on device; what is finished is kept"):
        quantize(source, out)
    monkeypatch.undo()
    assert quantize(source, out).path == out
