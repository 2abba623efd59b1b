"""Configs for planning: of models here, of released ones, of the hub's local cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from salalocal.config import ModelConfig
from salalocal.errors import ModelNotFound, UnsupportedFormat
from salalocal.hub import find_config


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_name_and_a_folder_without_weights(tmp_path: Path) -> None:
    assert find_config("salalocal-pocket").name == "config.json"
    (tmp_path / "config.json").write_text("{}")
    assert find_config(str(tmp_path)) == tmp_path / "config.json"


def test_a_gguf_file_is_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    assert find_config(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"


@pytest.mark.parametrize("hub_id", ["openbmb/MiniCPM-SALA", "OpenBMB/minicpm-sala"])
def test_the_released_model(hub_id: str) -> None:
    config = ModelConfig.from_json(find_config(hub_id))
    assert (len(config.sparse_layers), len(config.lightning_layers), config.hidden_size) == (8, 24, 4096)
    assert config.notes == ()


def test_the_hubs_cache_comes_first(empty_cache: Path) -> None:
    snapshot = empty_cache / "models--openbmb--MiniCPM-SALA" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert find_config("openbmb/MiniCPM-SALA") == snapshot / "config.json"


@pytest.mark.parametrize(
    ("set_to", "value", "where"),
    [("HF_HOME", "hf", "hf/hub"), ("XDG_CACHE_HOME", "xdg", "xdg/huggingface/hub")],
)
def test_where_the_cache_is(
    set_to: str, value: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(set_to, str(tmp_path / value))
    snapshot = tmp_path / where / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert find_config("a/b") == snapshot / "config.json"


def test_an_unknown_id_says_what_to_do() -> None:
    with pytest.raises(ModelNotFound, match=r"a/b: nothing is known .*config\.json alone into a folder"):
        find_config("a/b")


@pytest.mark.parametrize("text", ["nonsense", "../../b", "a/b/c", "*/b"])
def test_what_is_no_id_is_refused_like_any_name(text: str) -> None:
    with pytest.raises(ModelNotFound, match="models on this machine"):
        find_config(text)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedFormat):
        find_config(str(tmp_path / "model.safetensors"))
