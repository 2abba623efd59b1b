"""What is scored before a text is read is what its reading scores."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import small_config

from salalocal.bench import scoring
from salalocal.bench.long import made_ids, open_session
from salalocal.bench.made_model import make_network
from salalocal.bench.scoring import compile_pieces, compile_scoring
from salalocal.model import pieces, sparse_layer

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1024, 1000])
def test_tiles_of_every_chunk_are_tried(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    chunk, layers = 256, 2
    monkeypatch.setattr(sparse_layer, "_TILE_TOKENS", 64)
    monkeypatch.setattr(sparse_layer, "TILE_SCORES", 2048)
    real = scoring.block_scores
    calls: list[tuple[object, ...]] = []

    def scores(q: Tensor, fine: Tensor, coarse: Tensor, first: int, *rest: object) -> Tensor:
        calls.append((tuple(q.shape), tuple(fine.shape), tuple(coarse.shape), first, *rest))
        return real(q, fine, coarse, first, *rest)  # type: ignore[arg-type]

    for module in (scoring, sparse_layer):
        monkeypatch.setattr(module, "block_scores", scores)
    network = make_network(small_config(), torch.float32, CPU)
    compile_scoring(network.config, length, chunk, torch.float32, CPU)
    tried, calls[:] = list(calls), []
    open_session(network, length, chunk).prefill(made_ids(network.config, length), chunk, length)
    per_chunk = [[call for call in calls if call[3] // chunk == number] for number in range(4)]  # type: ignore[operator]
    of_one_layer = [found[: len(found) // layers] for found in per_chunk]
    assert tried == [call for found in of_one_layer for call in found[:2] + found[2:][-2:]]
    assert {call[0][0] for call in tried} >= {64, 32}  # type: ignore[index]


def test_pieces_are_read_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pieces.sparse_attention_prefill
    calls: list[tuple[bool, tuple[int, int]]] = []

    def attention(*args: object) -> Tensor:
        *_, out, span = args
        calls.append((out is None, span))  # type: ignore[arg-type]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "sparse_attention_prefill", attention)
    compile_pieces(small_config(), 512, torch.float32, CPU)
    assert calls == [(True, (0, 16)), (False, (16, 32))]
