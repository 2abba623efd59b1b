"""A folder's files as one source: shards equal one file, and every way they can disagree is named."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from salalocal.errors import BadCheckpoint, UnsupportedFormat
from salalocal.weights.safetensors_source import SafetensorsSource

Tensors = dict[str, torch.Tensor]


def write_shards(folder: Path, tensors: Tensors, count: int = 3) -> dict[str, str]:
    """Shards and their index instead of the single file; returns the index's map."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    placed = {name: f"model-{n % count + 1:05}-of-{count:05}.safetensors" for n, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == file}, folder / file)
    write_index(folder, placed)
    return placed


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def refuse(folder: Path, problem: str, kind: type[Exception] = BadCheckpoint) -> None:
    with pytest.raises(kind, match=re.escape(problem)) as refused:
        SafetensorsSource(folder)
    assert str(folder) in str(refused.value)


def test_shards_equal_one_file(folder: Path, tensors: Tensors) -> None:
    single = SafetensorsSource(folder)
    read = {name: single.read(name) for name in single.tensors}
    write_shards(folder, tensors)
    sharded = SafetensorsSource(folder)
    assert set(sharded.tensors) == set(single.tensors) == set(tensors)
    for name, info in sharded.tensors.items():
        assert (info.shape, info.dtype, info.is_float) == (tuple(tensors[name].shape), "BF16", True)
        assert torch.equal(sharded.read(name), read[name])
        assert torch.equal(read[name], tensors[name])


def test_a_missing_shard(folder: Path, tensors: Tensors) -> None:
    placed = write_shards(folder, tensors)
    file = placed[sorted(tensors)[0]]
    (folder / file).unlink()
    refuse(folder, f"{file} is missing; download the model again")


def test_swapped_shards(folder: Path, tensors: Tensors) -> None:
    one, other = sorted(set(write_shards(folder, tensors, count=2).values()))
    (folder / one).rename(folder / "spare")
    (folder / other).rename(folder / one)
    (folder / "spare").rename(folder / other)
    refuse(folder, "which the index puts elsewhere")


def test_a_tensor_the_shard_does_not_hold(folder: Path, tensors: Tensors) -> None:
    placed = write_shards(folder, tensors)
    write_index(folder, {**placed, "ghost.weight": next(iter(placed.values()))})
    refuse(folder, "tensor 'ghost.weight' is not in model-")


def test_a_tensor_the_index_does_not_name(folder: Path, tensors: Tensors) -> None:
    placed = write_shards(folder, tensors)
    name = sorted(placed)[0]
    del placed[name]
    write_index(folder, placed)
    refuse(folder, f"holds tensor {name!r}, which the index puts elsewhere")


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "C:x.safetensors",
        "x.safetensors:stream.safetensors", "x\0.safetensors", "x*.safetensors", "x.bin", "x.safetensors.bin",
        "", ".", 7, None, ["x.safetensors"], "x" * 100_000 + "/.safetensors",
    ],
    ids=lambda file: repr(file)[:30],
)  # fmt: skip
def test_an_index_that_names_no_plain_file(folder: Path, tensors: Tensors, file: object) -> None:
    save_file(tensors, folder.parent / "x.safetensors")  # what "../x" would reach
    write_index(folder, {"model.norm.weight": file})
    refuse(folder, "tensor 'model.norm.weight' is placed in ")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", 3], ids=str)
def test_an_index_without_a_map(folder: Path, weight_map: object) -> None:
    write_index(folder, weight_map)
    refuse(folder, "weight_map is missing or not an object")


def test_an_index_that_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    refuse(folder, "not valid JSON")


def test_a_truncated_shard(folder: Path, tensors: Tensors) -> None:
    file = folder / next(iter(write_shards(folder, tensors).values()))
    file.write_bytes(file.read_bytes()[:-1])
    refuse(folder, f"{file.name}: tensor ")


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self._trace), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_named_and_never_opened(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "opened"
    (tmp_path / name).write_bytes(pickle.dumps(_Bomb(trace)))
    refuse(tmp_path, f"{name} is a pickle, which is never opened", UnsupportedFormat)
    assert not trace.exists()


def test_an_empty_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "no model.safetensors and no model.safetensors.index.json", UnsupportedFormat)


def test_a_pickle_beside_sound_weights_does_no_harm(folder: Path) -> None:
    trace = folder / "opened"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(trace)))
    SafetensorsSource(folder)
    assert not trace.exists()


def test_a_file_that_vanishes_after_the_check(folder: Path) -> None:
    source = SafetensorsSource(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"tensor 'model\.norm\.weight' cannot be read"):
        source.read("model.norm.weight")
