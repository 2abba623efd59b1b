"""From a path to an engine: which device and dtype, and what is refused with which error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model

import salalocal
from salalocal.engine.devices import resolve_device, resolve_dtype
from salalocal.errors import BadCheckpoint, BadConfig, InvalidRequest, ModelNotFound, UnsupportedFormat


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny", tiny_config())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", torch.float32), ("float64", torch.float64), ("bfloat16", torch.bfloat16)]
)
def test_a_folder_without_a_tokenizer_loads(folder: Path, dtype: str, kind: torch.dtype) -> None:
    engine = salalocal.load(folder, device="cpu", dtype=dtype)
    assert (engine.name, engine.dtype, engine.device.type) == ("tiny", kind, "cpu")
    assert engine.new_session().prefill(random_ids(30)).isfinite().all()


def test_dtypes_agree(folder: Path) -> None:
    rows = {
        dtype: salalocal.load(folder, device="cpu", dtype=dtype).new_session().prefill(random_ids(60)).double()
        for dtype in ("float64", "float32")
    }
    assert (rows["float64"] - rows["float32"]).abs().max() < 1e-4


def test_a_path_as_a_string(folder: Path) -> None:
    assert salalocal.load(str(folder), device="cpu", dtype="float32").config.num_hidden_layers == 3


@pytest.mark.parametrize("device", ["gpu", "cuda:7", "", "mps"])
def test_unknown_devices(device: str) -> None:
    with pytest.raises(InvalidRequest, match="known are auto, cpu, cuda"):
        resolve_device(device)


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidRequest, match="finds no usable NVIDIA GPU; use 'cpu'"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


@pytest.mark.parametrize("dtype", ["float16", "int8", "", "FLOAT32"])
def test_unknown_dtypes(dtype: str) -> None:
    with pytest.raises(InvalidRequest, match="known are auto, float32, float64, bfloat16"):
        resolve_dtype(dtype, torch.device("cpu"))


def test_auto_dtype() -> None:
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)


def test_what_is_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        salalocal.load(tmp_path / "none")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedFormat, match=r"no model\.safetensors"):
        salalocal.load(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": -1}), encoding="utf-8")
    with pytest.raises(BadConfig, match="field vocab_size is -1"):
        salalocal.load(folder)


def test_a_config_of_another_size_than_the_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 21}), encoding="utf-8")
    with pytest.raises(BadCheckpoint, match=r"mlp\.gate_proj\.weight' has shape \[20, 24\], config\.json makes it"):
        salalocal.load(folder, device="cpu")


def test_an_absurd_but_legal_config_allocates_nothing(folder: Path) -> None:
    """Refused by the headers, or by the planner; never by a MemoryError."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changes = {"vocab_size": 1 << 24, "intermediate_size": 1 << 21, "head_dim": 4096}
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    with pytest.raises(BadCheckpoint, match="has shape"):
        salalocal.load(folder, device="cpu")


def test_a_length_note_only_past_the_trained_length(folder: Path) -> None:
    engine = salalocal.load(folder, device="cpu", dtype="float32")
    assert engine.length_note(4096) is None
    note = engine.length_note(4097)
    assert note is not None
    assert "4,097" in note
    assert "4,096" in note
    assert engine.max_context_tokens() > 4096, "a note, not a limit"


def test_rope_on_attention_layers_binds(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny", tiny_config(attn_use_rope=True, max_position_embeddings=50))
    session = salalocal.load(folder, device="cpu", dtype="float32").new_session()
    with pytest.raises(salalocal.ContextTooLong, match="51 tokens are asked for and 50 fit; leave out at least 1"):
        session.prefill(random_ids(51))
    session.prefill(random_ids(50))
