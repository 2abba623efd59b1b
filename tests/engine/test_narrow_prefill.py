"""Prefill in 8 bits: how far from full it is, what it leaves alone, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from naive_sala import tiny_config, write_model

import salalocal
from salalocal.engine.engine import Engine
from salalocal.errors import InvalidRequest
from salalocal.hub import EMBEDDED_MODEL
from salalocal.model.lightning_layer import LightningLayer
from salalocal.model.narrow import NARROW_DTYPES
from salalocal.model.sparse_layer import SparseLayer
from salalocal.quantizer import quantize
from salalocal_quant import Int8Weight, NarrowWeight

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
IDS = [(7 * position * position + 3 * position) % 256 for position in range(600)]
# Root mean square of the logits' difference from full over that of the logits. Measured: 4.3 and 13.0 % on the tiny
# model, whose matrices are random (bfloat16: 1.7 %), and 2.5 and 5.0 % on the embedded one.
WORST_TINY = {"int8": 0.07, "fp8": 0.2}
WORST_EMBEDDED = {"int8": 0.04, "fp8": 0.08}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(GOLDEN / "m2", tmp_path_factory.mktemp("packed") / "m2", format="int4").path


def load(path: str | Path, prefill: str) -> Engine:
    return salalocal.load(path, device="cpu", dtype="float32", prefill=prefill)


def relative_rms(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("prefill", NARROW_DTYPES)
def test_logits_of_a_tiny_model(folder: Path, prefill: str) -> None:
    full, narrow = (load(folder, kind).new_session() for kind in ("full", prefill))
    wanted, found = (session.prefill(IDS, chunk_size=300, all_logits=True) for session in (full, narrow))
    assert 1e-3 < relative_rms(found, wanted) < WORST_TINY[prefill]
    # An answer's tokens go as ever, over what was read.
    assert relative_rms(narrow.step(5), full.step(5)) < WORST_TINY[prefill]


@pytest.mark.parametrize("prefill", NARROW_DTYPES)
def test_few_tokens_are_not_rounded(folder: Path, prefill: str) -> None:
    full, narrow = (load(folder, kind).new_session() for kind in ("full", prefill))
    assert relative_rms(narrow.prefill(IDS[:200]), full.prefill(IDS[:200])) < 1e-5
    assert relative_rms(narrow.step(5), full.step(5)) < 1e-5


@pytest.mark.parametrize("prefill", NARROW_DTYPES)
def test_what_decides_selection_and_the_head_stay_full(folder: Path, prefill: str) -> None:
    network = load(folder, prefill)._network
    rounded = 0
    for layer in network.layers:
        mixer = layer.mixer
        inputs = list(mixer.inputs.weights)
        if isinstance(mixer, SparseLayer):
            assert all(isinstance(weight, Int8Weight) for weight in inputs[:2])
            inputs = inputs[2:]
        assert isinstance(mixer, SparseLayer | LightningLayer)
        for weight in (*inputs, mixer.o_proj, *layer.feed_forward.matrices):
            assert isinstance(weight, NarrowWeight)
            assert weight.dtype == NARROW_DTYPES[prefill]
            rounded += 1
    assert rounded > 20
    assert not isinstance(network.head, NarrowWeight)
    assert not isinstance(network.embedding, NarrowWeight)


@pytest.mark.parametrize("prefill", NARROW_DTYPES)
def test_the_embedded_model_predicts_nearly_the_same(prefill: str) -> None:
    text = (Path(__file__).parents[2] / "examples/northanger-abbey.txt").read_text(encoding="utf-8")[20_000:23_000]
    full, narrow = (load(EMBEDDED_MODEL, kind) for kind in ("full", prefill))
    ids = full.encode(text)[:512]
    wanted, found = (engine.new_session().prefill(ids, all_logits=True) for engine in (full, narrow))
    assert relative_rms(found, wanted) < WORST_EMBEDDED[prefill]
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.85
    assert narrow.packing_note() == "the weights stay packed in memory"


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest, match="prefill is 'bf16'; known are full, int8, fp8"):
        load(folder, "bf16")
    plain = write_model(tmp_path / "tiny", tiny_config())
    with pytest.raises(InvalidRequest, match="tiny: prefill in int8 is for packed weights; make some with"):
        load(plain, "int8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(InvalidRequest, match=r"fp8 needs a GPU of compute capability 8\.9, and this one has 8\.6; use"):
        salalocal.load(folder, device="cuda", prefill="fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(InvalidRequest, match=r"int8 needs a GPU of compute capability 8\.0, and this one has 7\.5"):
        salalocal.load(folder, device="cuda", prefill="int8")
