"""What 8 bits change is counted as it is said, on a small model and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salalocal.bench import kv
from salalocal.bench.kv import KvRow, changed_share, compare_kv, text_ids
from salalocal.documents import Document
from salalocal.errors import InvalidRequest
from salalocal.sparse_config import SparseConfig

MODEL = Path(__file__).parents[1] / "golden" / "models" / "m2"
NOTHING = Document("nothing", (), ())
# Blocks of 4 tokens; the first, a query's own and 2 before it are always read.
SPARSE = SparseConfig(4, 2, 1, 4, 8, 4, 0)


def test_free_picks_by_hand() -> None:
    """40 tokens are 10 blocks; the last two queries are in block 9, so 1 to 6 are free."""
    one = torch.tensor([[[0, 2, 4, 7, 8, 9], [0, 1, 5, 7, 8, 9]]], dtype=torch.int32)
    other = torch.tensor([[[0, 2, 5, 7, 8, 9], [0, 1, 5, 7, 8, 9]]], dtype=torch.int32)
    assert changed_share(one, other, SPARSE, 40) == 1 / 4
    assert changed_share(one, one, SPARSE, 40) == 0
    other[0, 1] = torch.tensor([0, 6, 8, 9, -1, -1])
    assert changed_share(one, other, SPARSE, 40) == 3 / 4
    local = torch.tensor([[[0, 1, 2, -1]]], dtype=torch.int32)
    assert changed_share(local, local, SPARSE, 12) == 0, "nothing to choose"


def made_ids(count: int) -> list[int]:
    return [token * token * 7 % 101 for token in range(count)]


def test_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "text_ids", lambda *_: made_ids(900))
    told: list[KvRow] = []
    rows = compare_kv(MODEL, NOTHING, 900, told.append, "cpu", "float32", queries=200, kv_budget=1 << 22)
    assert rows == told
    assert [row.kv for row in rows] == ["full", "int8", "fp8"]
    assert rows[1].chunk_tokens == rows[2].chunk_tokens == 2 * rows[0].chunk_tokens
    full, eight, floats = rows
    assert full.logits_rms < 1e-5 < eight.logits_rms < floats.logits_rms
    assert full.changed_share <= eight.changed_share
    assert 0 < floats.changed_share < 0.5
    assert len(floats.changed) == len(full.changed)
    assert 0 <= eight.divergence < floats.divergence


def test_a_text_that_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "text_ids", lambda *_: made_ids(12))
    with pytest.raises(InvalidRequest, match="reads all of 12 tokens"):
        compare_kv(MODEL, NOTHING, 12, lambda _: None, "cpu", "float32", queries=4, kv_budget=1 << 22)


def test_made_up_prose_comes_before_a_short_text() -> None:
    class Engine:
        def encode(self, content: str | Document) -> list[int]:
            return list(content.encode()) if isinstance(content, str) else [1, 2, 3]

    assert text_ids(Engine(), NOTHING, 2) == [1, 2]  # type: ignore[arg-type]
    ids = text_ids(Engine(), NOTHING, 500_000)  # type: ignore[arg-type]
    assert len(ids) == 500_000
    assert ids[-3:] == [1, 2, 3]
    assert ids == text_ids(Engine(), NOTHING, 500_000)  # type: ignore[arg-type]
