"""A tiny golden case, made from the specification's own loop, for tests that damage it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from naive_sala import NaiveSala, random_ids, random_weights, tiny_config, write_model
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
MakeCase = Callable[..., tuple[Path, Tensors]]


def bitmap(selected: list[list[list[int]]], width: int) -> torch.Tensor:
    """[query][kv head][blocks] -> uint8 [kv heads, queries, width], little-endian bits."""
    rows = np.zeros((len(selected[0]), len(selected), width * 8), dtype=np.uint8)
    for t, heads in enumerate(selected):
        for g, blocks in enumerate(heads):
            rows[g, t, blocks] = 1
    return torch.from_numpy(np.packbits(rows, axis=-1, bitorder="little"))


def write_case(root: Path, mixers: str, prompt: int, decode: int) -> tuple[Path, Tensors]:
    """A case's folder in `root`, its model beside it; returns the folder and the case's tensors."""
    config = tiny_config(mixers)
    write_model(root / "models" / "tiny", config)
    naive, ids = NaiveSala(config, random_weights(config)), random_ids(prompt + decode)
    dense_len = config["sparse_config"]["dense_len"]
    is_sparse = [prompt >= dense_len] * prompt + [prompt + n + 1 >= dense_len for n in range(decode)]
    rows, selected, states = [], [], {}
    for n, token in enumerate(ids):
        if n == prompt:
            states = {layer: state.copy() for layer, state in naive.states.items()}
        rows.append(naive.read(token, is_sparse[n], max(prompt, n + 1)))
        selected.append(dict(naive.selected))
    tensors: Tensors = {
        "input_ids": torch.tensor(ids, dtype=torch.int32),
        "logits_pos": torch.arange(0, prompt, 3, dtype=torch.int32),
        "prefill_logits": torch.from_numpy(np.stack(rows[0:prompt:3])).float(),
    }
    for layer, state in (states or naive.states).items():
        tensors[f"state_prefill.layer{layer}"] = torch.from_numpy(state).float()
    if decode:
        tensors["decode_logits"] = torch.from_numpy(np.stack(rows[prompt:])).float()
        for layer, state in naive.states.items():
            tensors[f"state_final.layer{layer}"] = torch.from_numpy(state).float()
    width = -(-len(ids) // 4 // 8) + 1
    for layer in (n for n, kind in enumerate(config["mixer_types"]) if kind == "minicpm4"):
        if is_sparse[0]:
            tensors[f"sel.layer{layer}"] = bitmap([row[layer] for row in selected[:prompt]], width)
            tensors[f"margin.layer{layer}"] = torch.full((2, prompt), 0.01)
        if decode and is_sparse[-1]:
            picked = [row[layer] or [[], []] for row in selected[prompt:]]
            tensors[f"dsel.layer{layer}"] = bitmap(picked, width)
            tensors[f"dmargin.layer{layer}"] = torch.full((2, decode), 0.01)
    folder = root / "tiny_case"
    folder.mkdir()
    case = {"name": "tiny_case", "model": "../models/tiny", "prompt_len": prompt, "decode_len": decode}
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    save_file(tensors, folder / "io.safetensors")
    return folder, tensors
