"""From files to a network: what does not belong is refused before anything is read, NaN on the way, and released."""

from __future__ import annotations

import gc
import json
import re
import weakref
from pathlib import Path

import pytest
import torch
from naive_sala import random_ids, tiny_config, write_model
from safetensors.torch import save_file
from test_safetensors_source import write_shards

import salalocal
from salalocal.errors import BadCheckpoint
from salalocal.weights.safetensors_source import SafetensorsSource

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.1.self_attn.k_proj.weight"


def rewrite(folder: Path, tensors: Tensors) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def refuse(folder: Path, problem: str, dtype: str = "float32") -> str:
    with pytest.raises(BadCheckpoint, match=re.escape(problem)) as refused:
        salalocal.load(folder, device="cpu", dtype=dtype)
    return str(refused.value)


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values must not be touched: headers alone decide."""

    def read(_: SafetensorsSource, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsSource, "read", read)


@pytest.mark.usefixtures("never_read")
class TestHeadersDecide:
    def test_missing(self, folder: Path, tensors: Tensors) -> None:
        del tensors[NAME]
        rewrite(folder, tensors)
        refuse(folder, f"tensor {NAME!r} is missing")

    def test_extra(self, folder: Path, tensors: Tensors) -> None:
        rewrite(folder, tensors | {"z.weight": torch.zeros(1), "y.weight": torch.zeros(1)})
        refuse(folder, "model.safetensors: tensor 'y.weight' and 1 more has no place in the model")

    @pytest.mark.parametrize("shape", [(18, 25), (24, 18), (18 * 24,), (1, 18, 24), (0, 24)], ids=str)
    def test_wrong_shape(self, folder: Path, tensors: Tensors, shape: tuple[int, ...]) -> None:
        rewrite(folder, tensors | {NAME: torch.zeros(shape)})
        refuse(folder, f"tensor {NAME!r} has shape {list(shape)}, config.json makes it [18, 24]")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
    def test_wrong_type(self, folder: Path, tensors: Tensors, dtype: torch.dtype) -> None:
        rewrite(folder, tensors | {NAME: torch.zeros(18, 24).to(dtype)})
        assert "a floating type is needed" in refuse(folder, f"model.safetensors: tensor {NAME!r} is ")

    def test_a_head_that_is_tied_has_no_tensor(self, tmp_path: Path) -> None:
        folder = write_model(tmp_path, tiny_config())
        write_config(folder, tiny_config(tie_word_embeddings=True))
        refuse(folder, "tensor 'lm_head.weight' has no place in the model")

    @pytest.mark.parametrize(
        ("switch", "name"),
        [
            ("attn_use_output_gate", "model.layers.0.self_attn.o_gate.weight"),
            ("use_output_gate", "model.layers.1.self_attn.z_proj.weight"),
            ("use_output_norm", "model.layers.1.self_attn.o_norm.weight"),
            ("qk_norm", "model.layers.1.self_attn.k_norm.weight"),
        ],
    )
    def test_switches_decide_which_tensors_there_are(self, tmp_path: Path, switch: str, name: str) -> None:
        folder = write_model(tmp_path, tiny_config(**{switch: False}))
        write_config(folder, tiny_config())
        refuse(folder, "is missing")
        folder = write_model(tmp_path, tiny_config())
        write_config(folder, tiny_config(**{switch: False}))
        refuse(folder, f"tensor {name!r}")


def write_config(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", NAME, "model.norm.weight", "lm_head.weight"])
def test_nan_and_infinity_are_found_per_tensor(folder: Path, tensors: Tensors, name: str, bad: float) -> None:
    tensors[name].view(-1)[-1] = bad
    rewrite(folder, tensors)
    refuse(folder, f"model.safetensors: tensor {name!r} holds NaN, Inf")


def test_a_number_too_large_for_the_dtype(folder: Path, tensors: Tensors) -> None:
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    tensors[NAME][3, 4] = 1e300
    rewrite(folder, tensors)
    refuse(folder, f"tensor {NAME!r} holds NaN, Inf or a number too large for torch.float32")
    salalocal.load(folder, device="cpu", dtype="float64")


def tensor_bytes() -> int:
    gc.collect()
    return sum(found.nbytes for found in gc.get_objects() if issubclass(type(found), torch.Tensor))


def test_after_a_nan_everything_is_released(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=192, intermediate_size=256, vocab_size=512)
    folder = write_model(tmp_path, config)
    source = SafetensorsSource(folder)
    tensors = {name: source.read(name).clone() for name in source.tensors}
    tensors["lm_head.weight"][-1, -1] = float("nan")
    rewrite(folder, tensors)
    resident = 2 * sum(tensor.nbytes for tensor in tensors.values())
    del tensors
    before = tensor_bytes()
    with pytest.raises(BadCheckpoint) as refused:
        salalocal.load(folder, device="cpu", dtype="float32")
    # The error is still held, with its traceback and all its frames.
    assert refused.tb is not None
    assert tensor_bytes() - before < resident / 100


def test_never_more_than_one_tensor_beside_the_resident_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, alive, most = SafetensorsSource.read, [], []

    def read(self: SafetensorsSource, name: str) -> torch.Tensor:
        most.append(sum(known() is not None for known in alive))
        tensor = real(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsSource, "read", read)
    engine = salalocal.load(folder, device="cpu", dtype="float32")
    assert len(most) > 20
    assert max(most) == 0, "an earlier tensor, as its file holds it, was still alive when the next was read"
    assert engine.weight_bytes > 0


def test_shards_give_the_same_network(folder: Path, tensors: Tensors) -> None:
    ids = random_ids(40)
    single = salalocal.load(folder, device="cpu", dtype="float32").new_session().prefill(ids)
    write_shards(folder, tensors)
    sharded = salalocal.load(folder, device="cpu", dtype="float32").new_session().prefill(ids)
    assert torch.equal(single, sharded)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16], ids=str)
def test_other_floating_types_are_read(folder: Path, tensors: Tensors, kind: torch.dtype) -> None:
    ids = random_ids(40)
    expected = salalocal.load(folder, device="cpu", dtype="float32").new_session().prefill(ids)
    rewrite(folder, {name: tensor.to(kind) for name, tensor in tensors.items()})
    found = salalocal.load(folder, device="cpu", dtype="float32").new_session().prefill(ids)
    # bfloat16 values below float16's smallest normal number lose bits; everything else is exact.
    torch.testing.assert_close(found, expected, atol=1e-3 if kind == torch.float16 else 0, rtol=0)


def test_weight_bytes_are_those_of_the_matrices(folder: Path, tensors: Tensors) -> None:
    engine = salalocal.load(folder, device="cpu", dtype="float32")
    assert engine.weight_bytes == sum(4 * tensor.numel() for tensor in tensors.values() if tensor.ndim == 2)


def test_the_largest_are_read_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, names = SafetensorsSource.read, []

    def noted(source: SafetensorsSource, name: str) -> torch.Tensor:
        names.append(name)
        return read(source, name)

    monkeypatch.setattr(SafetensorsSource, "read", noted)
    salalocal.load(folder, device="cpu", dtype="float32")
    parts = [next(part for part in ("embed", "lm_head", "mlp", "") if part in name) for name in names]
    matrices = [part for name, part in zip(names, parts, strict=True) if "norm" not in name]
    assert matrices == sorted(matrices, key=("embed", "lm_head", "mlp", "").index)
