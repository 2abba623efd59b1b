"""Writes trained weights as a model folder that the runtime loads: config, bf16 safetensors, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from salalocal.training.geometry import Geometry
from salalocal.training.network import Network
from salalocal.training.vocabulary import END_OF_TEXT, TURN_END, special_id, write_tokenizer_files
from salalocal_quant import Int4Weight, Int8Weight

SINGLE_FILE = "model.safetensors"
_ROW_SCALE = ".row_scale"
INDEX_FILE = "model.safetensors.index.json"


def export(network: Network, tokenizer: Tokenizer, folder: Path, shard_bytes: int | None = None) -> None:
    """Write the model folder; with `shard_bytes` the weights are split into files of at most that size."""
    folder.mkdir(parents=True, exist_ok=True)
    end, padding = special_id(tokenizer, TURN_END), special_id(tokenizer, END_OF_TEXT)
    network.geometry.write_config(folder, [end, padding], padding)
    write_tokenizer_files(tokenizer, folder, network.geometry.max_position_embeddings)
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in network.state_dict().items()
    }
    shards = _split(tensors, shard_bytes) if shard_bytes else [tensors]
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE_FILE, metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1) + "\n")


def export_master(network: Network, folder: Path) -> None:
    """Write weights to go on training from in half the bytes: matrices as int8 rows, each with a scale of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            tensors[name] = (value / scale).round().to(torch.int8)
            tensors[name + _ROW_SCALE] = scale
        else:
            tensors[name] = value.contiguous()
    save_file(tensors, folder / SINGLE_FILE)


def load_weights(network: Network, folder: Path) -> None:
    """Take the weights of an exported folder, master or packed model, whole or in shards, into the network.

    Fewer kv heads than the network has are taken several times: it computes the same and may learn to differ.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    for name in [name.removesuffix("qweight") for name in tensors if name.endswith("qweight")]:
        codes, scales, zeros = (tensors.pop(name + part, None) for part in ("qweight", "scales", "zeros"))
        assert codes is not None
        assert scales is not None
        kind = Int8Weight if codes.dtype == torch.int8 else Int4Weight
        tensors[name + "weight"] = kind(codes, scales, zeros, torch.float32).unpack().data
    rows = {name: tensors.pop(name) for name in [*tensors] if name.endswith(_ROW_SCALE)}
    values = {name: value.float() * rows.get(name + _ROW_SCALE, torch.ones(())) for name, value in tensors.items()}
    for name, own in network.state_dict().items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            values[name] = values[name].repeat(own.shape[0] // values[name].shape[0], 1)
    network.load_state_dict(values)


def read_geometry(folder: Path) -> Geometry:
    """The geometry of an exported folder."""
    return Geometry.from_config(json.loads((folder / "config.json").read_text()))


def _split(tensors: dict[str, Tensor], limit_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used and used + tensor.nbytes > limit_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    return shards
