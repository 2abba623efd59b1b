"""The training network against the golden cases of the architecture, and its pieces against plain definitions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from salalocal.training import compressed
from salalocal.training.export import load_weights
from salalocal.training.geometry import TINY, Geometry
from salalocal.training.layers import lightning_mix
from salalocal.training.network import Execution, Network, Supervision, _flex_kernel

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [case for case in ("p1_dense_then_cross", "p4_dense_cross_cfgB") if (GOLDEN / case).is_dir()]


@pytest.mark.parametrize("case", CASES)
def test_dense_logits_equal_the_golden_ones(case: str) -> None:
    described = json.loads((GOLDEN / case / "case.json").read_text())
    model = (GOLDEN / case / described["model"]).resolve()
    network = Network(Geometry.from_config(json.loads((model / "config.json").read_text())), Execution())
    weights = {name: value for path in model.glob("*.safetensors") for name, value in load_file(path).items()}
    network.load_state_dict({name: value.float() for name, value in weights.items()})
    expected = load_file(GOLDEN / case / "io.safetensors")
    ids = expected["input_ids"].long()[None, : described["prompt_len"]]
    with torch.no_grad():
        logits = network.logits(ids)[0]
    assert (logits[expected["logits_pos"].long()] - expected["prefill_logits"]).abs().max() < 1e-3


def test_lightning_mix_is_the_recurrence() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 128, 4, 8, dtype=torch.float64)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.01], dtype=torch.float64)
    state = torch.zeros(2, 4, 8, 8, dtype=torch.float64)
    expected = []
    for t in range(128):
        state = torch.exp(-slopes)[:, None, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        expected.append(torch.einsum("bhd,bhde->bhe", q[:, t], state) * 8**-0.5)
    mixed = lightning_mix(q, k, v, slopes, 64)
    assert torch.allclose(mixed, torch.stack(expected, 1), atol=1e-5)


def _slow_scores(q: torch.Tensor, k: torch.Tensor, query: int) -> dict[int, float]:
    """P of one query by the definition: fine keys over the coarse keys' normaliser, summed over heads."""
    dim = q.shape[-1]
    fine = {j: k[16 * j : 16 * j + 32].mean(0) for j in range(len(k) // 16) if 16 * j + 32 <= query + 1}
    coarse = [k[64 * j : 64 * j + 128].mean(0) for j in range(len(k) // 64) if 64 * j + 128 <= query + 1]
    total = dict.fromkeys(fine, 0.0)
    for head in q:
        normalizer = sum(float(torch.exp(head @ key * dim**-0.5)) for key in coarse)
        for j, key in fine.items():
            total[j] += float(torch.exp(head @ key * dim**-0.5)) / normalizer
    return total


def test_group_scores_follow_the_definition() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(1, 1, 4, 512, 16), torch.randn(1, 1, 512, 16)
    scores = compressed.group_scores(q, k, torch.arange(512)[None])
    for query in (130, 255, 400, 511):
        expected = _slow_scores(q[0, 0, :, query], k[0, 0], query)
        for j, value in expected.items():
            assert scores[0, 0, query, j].exp().item() == pytest.approx(value, rel=1e-4)
        assert bool((scores[0, 0, query, len(expected) :] < -1e29).all())


def test_blocks_are_the_forced_ones_and_the_best_others() -> None:
    torch.manual_seed(2)
    q, k = torch.randn(1, 4, 1024, 16), torch.randn(1, 1, 1024, 16)
    chosen = compressed.picked_blocks(compressed.pooled_scores(q, k), window=128, picks=3)[0, 0]
    for query in (200, 700, 1023):
        own = query // 64
        total = _slow_scores(q[0, :, query], k[0, 0], query)
        forced = {0} | set(range(max(0, own - 2), own + 1))
        rest = [b for b in range(own + 1) if b not in forced]
        best = {b: max((total[j] for j in range(4 * b - 1, 4 * b + 4) if j in total), default=0.0) for b in rest}
        expected = forced | set(sorted(rest, key=lambda b: -best[b])[:3])
        assert set(torch.nonzero(chosen[query])[:, 0].tolist()) == expected


def test_the_compressed_loss_is_the_diluted_share_of_the_source() -> None:
    torch.manual_seed(3)
    q, k = torch.randn(1, 4, 512, 16), torch.randn(1, 1, 512, 16)
    loss, _ = compressed.compressed_loss(
        q, k, torch.tensor([[500, -1]]), torch.tensor([[200, -1]]), torch.tensor([448]), torch.tensor(2.0)
    )
    total = _slow_scores(q[0, :, 500], k[0, 0], 500)
    right = total[12] + total[11]
    wrong = sum(value for j, value in total.items() if j not in (11, 12) and 16 * j < 448)
    assert loss.item() == pytest.approx(-np.log(right / (right + np.e**2 * wrong)), rel=1e-4)


def test_a_crowded_key_counts_as_many_for_queries_after_the_documents() -> None:
    """exp(crowd) copies of a key are one key with `crowd` added to its logit; queries within the documents see one."""
    torch.manual_seed(5)
    q, k, v = torch.randn(1, 4, 64, 16), torch.randn(1, 1, 64, 16), torch.randn(1, 1, 64, 16)
    crowd = torch.zeros(1, 64)
    crowd[0, :40] = np.log(3.0)
    network = Network(TINY, Execution())
    nothing = torch.full((1, 1), -1)
    supervision = Supervision(nothing, nothing, torch.tensor([48]), torch.tensor(0.0), crowd)
    crowded = network._dense_attention(q, k, v, supervision)
    plain = network._dense_attention(q, k, v)
    assert torch.allclose(crowded[:, :, :48], plain[:, :, :48], atol=1e-5)
    for query in (48, 63):
        copies = [*range(40)] * 3 + [*range(40, query + 1)]
        weights = torch.softmax(q[0, :, query] @ k[0, 0, copies].T / 4, -1)
        assert torch.allclose(crowded[0, :, query], weights @ v[0, 0, copies], atol=1e-5)


def test_flex_and_mask_attention_agree() -> None:
    """FlexAttention is run uncompiled here: same mask function, same block lists as on a GPU."""
    torch.manual_seed(4)
    q, k, v = torch.randn(2, 4, 512, 16), torch.randn(2, 1, 512, 16), torch.randn(2, 1, 512, 16)
    network = Network(TINY, Execution(window=128, picks=2))
    masked = network._block_attention(q, k, v)
    network._flex = _flex_kernel(compiled=False)
    assert torch.allclose(masked, network._block_attention(q, k, v), atol=1e-5)
    assert not torch.allclose(masked, network._dense_attention(q, k, v), atol=1e-2)


def test_weights_of_one_kv_head_go_on_as_two(tmp_path: Path) -> None:
    one = Network(replace(TINY, num_key_value_heads=1), Execution(), seed=1)
    save_file(one.state_dict(), tmp_path / "model.safetensors")
    two = Network(replace(TINY, num_key_value_heads=2), Execution(), seed=2)
    load_weights(two, tmp_path)
    ids = torch.arange(256)[None] * 7 % TINY.vocab_size
    assert torch.allclose(one.logits(ids), two.logits(ids), atol=1e-4)
