"""`salalocal quantize`: what it prints, what it passes on, how it stops."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import Run

import salalocal
from salalocal.cli.terminal import human_bytes
from salalocal.config import ModelConfig
from salalocal.quantization import recipe
from salalocal.weights.safetensors_header import read_header

MODEL = Path(__file__).resolve().parents[1] / "golden" / "models" / "m4"


def test_a_model_is_packed_and_described(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "small"
    outcome = run("quantize", MODEL, "--out", out)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    entries, _ = read_header(out / "model.safetensors")
    packed_bytes = sum(entry.end - entry.begin for entry in entries.values())
    assert lines[-1] == f"{out}: {human_bytes(packed_bytes)} of 2.3 MB, groups of 128"
    rows = {line.split()[0]: line.split()[1:] for line in lines[:-1]}
    assert rows["mlp.gate_proj"][:2] == ["int4", "3"]
    assert rows["lm_head"][:2] == ["int8", "1"]
    assert 8 < float(rows["mlp.gate_proj"][2].rstrip("%")) < 11
    shown = run("show", out)
    assert "packed       int4: mlp.gate_proj, mlp.up_proj" in shown.out
    assert shown.out.rstrip().count("groups of 128") == 1
    data = run("show", "--json", out).data
    assert data["parameters"] == run("show", "--json", MODEL).data["parameters"]
    assert data["quantization"]["modules"]["lm_head"] == "int8"


def test_json(run: Run, tmp_path: Path) -> None:
    data = run("quantize", MODEL, "--format", "int8", "--group-size", "64", "--out", tmp_path / "x", "--json").data
    assert (data["group_size"], data["zero_point"]) == (64, False)
    assert {kind["format"] for kind in data["kinds"]} == {"int8"}
    assert all(0 < kind["relative_error"] < 0.01 for kind in data["kinds"])
    assert 0 < data["packed_bytes"] < data["source_bytes"]


def test_what_is_passed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def quantize(model: str, out: Path | None, **options: object) -> salalocal.QuantizeReport:
        given.update(options, model=model, out=out)
        columns = ModelConfig.from_json(MODEL / "config.json").matrix_columns
        kinds = (salalocal.KindReport("lm_head", "bf16", 1, None, "rows of 100 values do not divide"),)
        return salalocal.QuantizeReport(Path("x"), recipe("int4", columns, 64, True), 100, 30, kinds)

    monkeypatch.setattr(salalocal, "quantize", quantize)
    outcome = run("quantize", "sala", "--format", "int4", "--zero-point")
    assert given.pop("on_progress") is not None
    assert given == {"model": "sala", "out": None, "format": "int4", "group_size": None, "zero_point": True}
    assert outcome.out.splitlines() == [
        "lm_head            bf16     1  rows of 100 values do not divide",
        "x: 30 B of 100 B, groups of 64",
    ]


def test_refusals_are_one_line(run: Run, tmp_path: Path) -> None:
    outcome = run("quantize", MODEL, "--out", MODEL)
    assert outcome.code == 2
    assert "is the model itself" in outcome.error_lines[0]
    assert run("quantize", MODEL, "--format", "int3").code == 2
    assert run("quantize", MODEL, "--group-size", "96", "--out", tmp_path / "x").code == 2


def test_ctrl_c_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def quantize(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(salalocal, "quantize", quantize)
    outcome = run("quantize", "sala")
    assert outcome.code == 130
    assert "the same command goes on from there" in outcome.err
    assert outcome.out == ""
