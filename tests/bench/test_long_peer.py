"""The dense peer of `bench long` on a processor: its rows, out of memory, backends that are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import PEER_SHAPE

from salalocal.bench import long_peer
from salalocal.bench.dense_peer import DensePeer
from salalocal.bench.long_peer import time_peer
from salalocal.bench.long_rows import LongRow, LongTable
from salalocal.errors import EngineFailure

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def peer() -> DensePeer:
    return DensePeer(PEER_SHAPE, torch.float32, CPU)


def peer_rows(table: LongTable, lengths: tuple[int, ...] = (64, 32), run: str = "a run") -> list[LongRow]:
    told: list[LongRow] = []
    time_peer(peer, lengths, table, "a card", run, told.append, backends=("flash", "math"))
    return told


def test_rows_of_the_peer() -> None:
    table = LongTable(None)
    ours = LongRow("salalocal", 64, "own", "full", None, 8192, False, "a card", "a run", 0.5)
    table.add(ours)
    table.add(replace(ours, run="another run"))
    rows = peer_rows(table)
    assert [(row.model, row.tokens, row.selection) for row in rows] == [
        ("dense peer", 32, "everything"), ("dense peer", 64, "everything")
    ]  # fmt: skip
    for row in rows:
        assert row.ttft_seconds is not None
        assert set(row.attention_ms) == {"flash", "math"}
        assert row.prefill == min(row.attention_ms, key=lambda name: row.attention_ms[name])
        assert row.weight_bytes == 4 * PEER_SHAPE.matrices
    assert peer_rows(table) == []
    # Of one run only.
    assert table.ratio(table.rows[0]) == pytest.approx(rows[1].ttft_seconds / 0.5)
    assert table.ratio(table.rows[1]) is table.ratio(rows[1]) is None


def test_the_peer_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    read = DensePeer.read

    def read_little(self: DensePeer, ids: Tensor, backend: object) -> Tensor:
        if len(ids) > 40:
            raise torch.OutOfMemoryError
        return read(self, ids, backend)  # type: ignore[arg-type]

    monkeypatch.setattr(DensePeer, "read", read_little)
    short, whole = peer_rows(LongTable(None))
    assert (short.note, whole.note, whole.ttft_seconds) == ("", "out of memory", None)


def test_a_backend_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = long_peer.attend

    def only_math(q: Tensor, k: Tensor, v: Tensor, backend: object) -> Tensor:
        if backend != "math":
            raise RuntimeError("No available kernel")
        return attend(q, k, v, "math")

    monkeypatch.setattr(long_peer, "attend", only_math)
    (row,) = peer_rows(LongTable(None), (32,))
    assert (list(row.attention_ms), row.prefill) == (["math"], "math")
    monkeypatch.setattr(long_peer, "attend", lambda *_: only_math(*(torch.zeros(1, 1, 1),) * 3, backend="flash"))
    with pytest.raises(EngineFailure, match="none of PyTorch's attention backends"):
        peer_rows(LongTable(None), (32,))
