"""Packed models load as what their numbers say: near the original, and exactly a dense model of the same values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import salalocal
import salalocal_quant
from salalocal import quantization
from salalocal.config import ModelConfig
from salalocal.engine import load as load_module
from salalocal.engine.engine import Engine
from salalocal.errors import BadCheckpoint, UnsupportedFormat
from salalocal.planner import Footprint, footprint
from salalocal.quantizer import quantize
from salalocal.weights.layout import expected_tensors, modules, parameter_count, weight_bytes
from salalocal.weights.safetensors_header import read_header
from salalocal.weights.safetensors_writer import write_safetensors
from salalocal_quant import DenseWeight, Int4Weight, Int8Weight

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
IDS = [(7 * position * position + 3 * position) % 256 for position in range(300)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """packed(model="m2", format="int4", zero_point=False) -> folder, made once."""
    made: dict[tuple[str, str, bool], Path] = {}

    def make(model: str, format: str = "int4", zero_point: bool = False) -> Path:
        key = (model, format, zero_point)
        if key not in made:
            out = tmp_path_factory.mktemp("packed") / f"{model}-{format}"
            made[key] = quantize(GOLDEN / model, out, format=format, zero_point=zero_point).path
        return made[key]

    return make


def load(path: Path, dtype: str = "float32") -> Engine:
    return salalocal.load(path, device="cpu", dtype=dtype)


def logits(engine: Engine) -> Tensor:
    return engine.new_session().prefill(IDS, chunk_size=128, all_logits=True)


def relative_rms(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def keep_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads as on a machine whose memory does not hold the unpacked weights."""

    def choose(config: ModelConfig, dtype: torch.dtype, _: torch.device, chunk: int) -> tuple[Footprint, bool]:
        return footprint(config, dtype.itemsize, chunk), False

    monkeypatch.setattr(load_module, "_choose_packing", choose)


def dense_copy(path: Path, out: Path) -> Path:
    """The model whose plain float32 weights are what the packed ones stand for."""
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    stored, plain = load_file(path / "model.safetensors"), {}
    for module in modules(ModelConfig.from_json(path / "config.json")):
        name = f"{module.name}.weight"
        if name in stored:
            plain[name] = stored[name]
            continue
        codes, scales = stored[f"{module.name}.qweight"], stored[f"{module.name}.scales"].double()
        zeros = stored.get(f"{module.name}.zeros")
        if codes.dtype == torch.int32:
            # By the definition of the layout, element by element, and not by the code under test.
            shifts = torch.arange(0, 32, 4)
            steps = ((codes[..., None] >> shifts) & 15).flatten(1).double()
            group = steps.shape[1] // scales.shape[1]
            steps = steps - (8 if zeros is None else zeros.double().repeat_interleave(group, 1))
        else:
            steps = codes.double()
            group = steps.shape[1] // scales.shape[1]
        plain[name] = (steps * scales.repeat_interleave(group, 1)).float()
    write_safetensors(out / "model.safetensors", plain, {"format": "pt"})
    return out


@pytest.mark.parametrize(("format", "most"), [("int4", 0.35), ("int8", 0.035)])
@pytest.mark.parametrize("model", ["m2", "m4"])
def test_logits_stay_near_the_original(packed: Callable[..., Path], model: str, format: str, most: float) -> None:
    """Random weights are the worst case: every one of the 0.1 of error of a matrix goes through all layers."""
    error = relative_rms(logits(load(packed(model, format))), logits(load(GOLDEN / model)))
    assert 0.0 < error < most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "format", "zero_point"), [("m2", "int4", True), ("m4", "int4", False), ("m4", "int8", False)]
)
def test_packed_and_unpacked_models_equal_a_dense_one_of_the_same_values(
    packed: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    format: str,
    zero_point: bool,
    dtype: str,
) -> None:
    folder = packed(model, format, zero_point)
    dense = load(dense_copy(folder, tmp_path / "dense"), dtype)
    assert dense.packing_note() is None
    wanted = logits(dense)
    unpacked = load(folder, dtype)
    assert isinstance(unpacked._network.layers[0].feed_forward.down_proj, DenseWeight)
    assert unpacked.packing_note() == f"the packed weights were unpacked to {dtype} when they were read"
    assert torch.equal(logits(unpacked), wanted)
    keep_packed(monkeypatch)
    kept = load(folder, dtype)
    assert isinstance(kept._network.layers[0].feed_forward.down_proj, Int4Weight if format == "int4" else Int8Weight)
    assert isinstance(kept._network.embedding, Int8Weight)
    assert "stay packed in memory" in (kept.packing_note() or "")
    assert torch.equal(logits(kept), wanted)
    assert kept.weight_bytes < 0.7 * unpacked.weight_bytes


def test_a_tied_packed_embedding_is_the_head_too(tmp_path: Path) -> None:
    source = tmp_path / "tied"
    source.mkdir()
    config = json.loads((GOLDEN / "m4" / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(GOLDEN / "m4" / "model.safetensors")
    del tensors["lm_head.weight"]
    write_safetensors(source / "model.safetensors", tensors, {})
    folder = quantize(source, tmp_path / "packed").path
    engine = load(folder)
    assert engine._network.head is engine._network.embedding
    assert torch.equal(logits(engine), logits(load(dense_copy(folder, tmp_path / "dense"))))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("model", "format", "zero_point"), [("m2", "int4", True), ("m4", "int4", False), ("m4", "int8", False)]
)
def test_on_a_gpu_weights_stay_packed(
    packed: Callable[..., Path], tmp_path: Path, model: str, format: str, zero_point: bool
) -> None:
    folder = packed(model, format, zero_point)
    engine = salalocal.load(folder, device="cuda", dtype="float32")
    assert "stay packed in memory" in (engine.packing_note() or "")
    wanted = logits(load(dense_copy(folder, tmp_path / "dense")))
    assert relative_rms(logits(engine).cpu(), wanted) < 1e-4


def test_the_group_sizes_of_config_and_kernels_are_the_same() -> None:
    assert set(quantization.GROUP_SIZES) == set(salalocal_quant.GROUP_SIZES)


@pytest.mark.parametrize("zero_point", [False, True], ids=["symmetric", "zero-point"])
@pytest.mark.parametrize("model", ["m2", "m4"])
def test_the_plan_knows_the_bytes(
    packed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model: str, zero_point: bool
) -> None:
    folder = packed(model, "int4", zero_point)
    config = ModelConfig.from_json(folder / "config.json")
    entries, _ = read_header(folder / "model.safetensors")
    assert weight_bytes(config, 2) == sum(entry.end - entry.begin for entry in entries.values())
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: spec.shape for name, spec in expected_tensors(config).items()
    }
    norms = sum(module.shape[0] for module in modules(config) if module.kind is None)
    assert load(folder).weight_bytes == footprint(config, 4, 256, unpack=True).weight_bytes - 4 * norms
    keep_packed(monkeypatch)
    assert load(folder).weight_bytes == footprint(config, 4, 256).weight_bytes - 4 * norms
    plain = ModelConfig.from_json(GOLDEN / model / "config.json")
    assert parameter_count(config) == parameter_count(plain)
    assert weight_bytes(plain, 2) == 2 * parameter_count(plain)
    assert {module.kind: module.shape[1] for module in modules(plain) if module.kind} == plain.matrix_columns


def rewrite(folder: Path, out: Path, change: Callable[[dict[str, Tensor]], None], version: str = "1") -> Path:
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    change(tensors)
    write_safetensors(out / "model.safetensors", tensors, {"format": "salalocal-packed", "version": version})
    return out


MATRIX = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[f"{MATRIX}.scales"].view(-1)[3:4].fill_(float("nan")), "scales hold NaN"),
        (lambda t: t[f"{MATRIX}.scales"].view(-1)[3:4].fill_(float("inf")), "scales hold NaN, Inf"),
        (lambda t: t[f"{MATRIX}.zeros"].view(-1)[3:4].fill_(16), "zeros hold numbers above 15"),
    ],
    ids=["nan", "inf", "zero"],
)
def test_damaged_values_name_file_and_matrix(
    packed: Callable[..., Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    damaged = rewrite(packed("m2", "int4", True), tmp_path / "damaged", change)
    with pytest.raises(BadCheckpoint, match=rf"^model\.safetensors: packed weights of '{MATRIX}': {said}"):
        load(damaged)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(f"{MATRIX}.scales"), rf"tensor '{MATRIX}\.scales' is missing"),
        (lambda t: t.pop(f"{MATRIX}.zeros"), rf"tensor '{MATRIX}\.zeros' is missing"),
        (
            lambda t: t.update({f"{MATRIX}.scales": t[f"{MATRIX}.scales"].float()}),
            rf"tensor '{MATRIX}\.scales' is F32, BF16 is needed",
        ),
        (
            lambda t: t.update({f"{MATRIX}.qweight": t[f"{MATRIX}.qweight"].to(torch.int8)}),
            rf"tensor '{MATRIX}\.qweight' is I8, I32 is needed",
        ),
        (
            lambda t: t.update({f"{MATRIX}.qweight": t[f"{MATRIX}.qweight"][:, :-1]}),
            rf"tensor '{MATRIX}\.qweight' has shape \[192, 31\], config\.json makes it \[192, 32\]",
        ),
        (
            lambda t: t.update({"lm_head.zeros": torch.zeros(256, 4, dtype=torch.uint8)}),
            r"tensor 'lm_head\.zeros' has no place in the model",
        ),
    ],
    ids=["no scales", "no zeros", "scales dtype", "codes dtype", "codes shape", "extra zeros"],
)
def test_headers_that_do_not_fit_are_named(
    packed: Callable[..., Path], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    damaged = rewrite(packed("m2", "int4", True), tmp_path / "damaged", change)
    with pytest.raises(BadCheckpoint, match=said):
        load(damaged)


def test_an_int8_code_out_of_range_is_named(packed: Callable[..., Path], tmp_path: Path) -> None:
    damaged = rewrite(
        packed("m2", "int4", True), tmp_path / "damaged", lambda t: t["lm_head.qweight"].view(-1)[-1:].fill_(-128)
    )
    with pytest.raises(BadCheckpoint, match=r"packed weights of 'lm_head': qweight holds -128"):
        load(damaged)


def test_files_of_another_version_are_refused_by_number(packed: Callable[..., Path], tmp_path: Path) -> None:
    later = rewrite(packed("m2", "int4", True), tmp_path / "later", lambda _: None, version="2")
    with pytest.raises(UnsupportedFormat, match=r"packed weights of version '2'; this salalocal reads version 1"):
        load(later)


def test_packed_files_need_a_config_that_says_so(packed: Callable[..., Path], tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(packed("m2", "int4", True), swapped)
    shutil.copyfile(GOLDEN / "m2" / "config.json", swapped / "config.json")
    with pytest.raises(BadCheckpoint, match=r"'model\.embed_tokens\.weight' is packed, but config\.json has no"):
        load(swapped)
