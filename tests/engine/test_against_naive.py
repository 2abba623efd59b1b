"""The whole engine against the specification written out, over random models of many shapes, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from naive_sala import SPARSE, NaiveSala, random_ids, random_weights, tiny_config, write_model

import salalocal

SHAPES: dict[str, dict[str, object]] = {
    "groups of 3": {},
    "groups of 1": {"num_attention_heads": 2, "lightning_nkv": 2, "num_key_value_heads": 2},
    "groups of 16": {
        "hidden_size": 64,
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "lightning_nkv": 16,
    },
    "all sparse": {"mixers": "sss"},
    "all lightning": {"mixers": "ll"},
    "tied head": {"tie_word_embeddings": True},
    "switches the other way": {
        "attn_use_rope": True,
        "lightning_use_rope": False,
        "qk_norm": False,
        "use_output_gate": False,
        "use_output_norm": False,
        "attn_use_output_gate": False,
        "lightning_scale": "1/d",
    },
    "scale 1": {"lightning_scale": "1", "lightning_nkv": 1},
    "one compressed key per block": {"sparse_config": {**SPARSE, "block_size": 2, "window_size": 4}},
    "no window, no first block": {"sparse_config": {**SPARSE, "window_size": 0, "init_blocks": 0, "topk": 3}},
    "two first blocks": {"sparse_config": {**SPARSE, "init_blocks": 2, "topk": 5, "block_size": 6, "window_size": 6}},
    "stride 1": {"sparse_config": {**SPARSE, "kernel_stride": 1, "kernel_size": 2, "block_size": 3, "window_size": 3}},
    "always sparse": {"sparse_config": {**SPARSE, "dense_len": 0}},
    "always dense": {"sparse_config": None},
}


# dense_len is 24: 23 is dense and crosses in the first step, 53 drops blocks.
CASES = [("groups of 3", 1), ("groups of 3", 24), *((shape, prompt) for shape in SHAPES for prompt in (23, 53))]


@pytest.mark.parametrize(("shape", "prompt"), CASES)
def test_prefill_and_decode(shape: str, prompt: int, tmp_path: Path) -> None:
    config = tiny_config(**SHAPES[shape])
    folder = write_model(tmp_path, config)
    session = salalocal.load(folder, device="cpu", dtype="float64").new_session(record_selection=True)
    naive = NaiveSala(config, random_weights(config))
    ids = random_ids(prompt + 5, seed=prompt)
    dense_len = config["sparse_config"]["dense_len"] if config["sparse_config"] else 1 << 40
    sparse_layers = [n for n, kind in enumerate(config["mixer_types"]) if kind == "minicpm4"]

    expected, selected = [], []
    for token in ids[:prompt]:
        expected.append(naive.read(token, prompt >= dense_len, prompt))
        selected.append(dict(naive.selected))
    logits = session.prefill(ids[:prompt], chunk_size=17, all_logits=True)
    np.testing.assert_allclose(logits.numpy(), np.stack(expected), atol=1e-9, rtol=0)
    for layer in sparse_layers:
        blocks = session.selected_blocks(layer)
        if prompt < dense_len:
            assert blocks is None
            continue
        for t in range(prompt):
            found = [[b for b in row.tolist() if b >= 0] for row in blocks[:, t]]
            assert found == selected[t][layer], f"layer {layer}, query {t}"

    for length, token in enumerate(ids[prompt:], start=prompt + 1):
        step = session.step(token)
        np.testing.assert_allclose(step.numpy(), naive.read(token, length >= dense_len), atol=1e-9, rtol=0)
        for layer in sparse_layers:
            blocks = session.selected_blocks(layer)
            found = None if blocks is None else [[b for b in row.tolist() if b >= 0] for row in blocks[:, 0]]
            assert found == naive.selected[layer], f"layer {layer} at length {length}"
    for layer, state in naive.states.items():
        np.testing.assert_allclose(session.linear_state(layer).numpy(), state, atol=1e-9, rtol=0)


def test_the_models_drop_blocks_at_all() -> None:
    """Otherwise the comparison of selections above would compare nothing."""
    config = tiny_config()
    naive = NaiveSala(config, random_weights(config))
    for token in random_ids(61, seed=61):
        naive.read(token, True, 61)
    forced = [0, 13, 14, 15]
    free = [set(picked) - set(forced) for layer in (0, 2) for picked in naive.selected[layer]]
    assert all(len(picked) == 2 for picked in free)
    assert len({tuple(sorted(picked)) for picked in free}) > 1, "layers and kv heads all agree"
