"""The exported model in the runtime: the same logits as the network that was trained, dense and block-sparse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import salalocal
from salalocal.training.export import export, load_weights
from salalocal.training.filler import Corpus
from salalocal.training.geometry import TINY
from salalocal.training.network import Execution, Network


@pytest.mark.parametrize(("tokens", "mode"), [(200, "dense"), (704, "sparse")])
def test_training_and_runtime_agree(corpus: Corpus, tmp_path: Path, tokens: int, mode: str) -> None:
    geometry = replace(TINY, vocab_size=corpus.tokenizer.get_vocab_size(), window_size=128, topk=4, dense_len=512)
    # Of topk, the initial block and the query's own block leave two free picks.
    network = Network(geometry, Execution(window=128, picks=2), seed=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)
    export(network, corpus.tokenizer, tmp_path)
    load_weights(network, tmp_path)  # bf16 values on both sides
    ids = torch.from_numpy(corpus.token_ids[1000 : 1000 + tokens].astype("int64"))
    with torch.no_grad():
        trained = network.logits(ids[None], "sparse" if mode == "sparse" else "dense")[0]
    session = salalocal.load(tmp_path, device="cpu", dtype="float32").new_session()
    served = session.prefill(ids.tolist(), all_logits=True)
    assert (trained - served).abs().max() < 1e-3
    assert trained.std() > 0.1
