"""`salalocal bench kv`: what is asked of the comparison, and what is said of its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import Run

from salalocal.bench import kv
from salalocal.bench.kv import KvRow
from salalocal.documents import Document


def test_the_command(run: Run, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = KvRow("int8", 2048, (0.01, 0.03), 0.005, 0.0002, 0.99)

    def compare(model: str, document: Document, tokens: int, on_row: Callable[[KvRow], None], *_: str) -> list[KvRow]:
        assert (model, document.name, tokens) == ("salalocal-pocket", book.name, 65536)
        on_row(row)
        return [row]

    monkeypatch.setattr(kv, "compare_kv", compare)
    outcome = run("bench", "kv", book, "--length", "64K", "--model", "salalocal-pocket")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].split() == (
        ["int8", "2,048", "2.00", "%", "0.50", "%", "0.00020", "99.0", "%", "1.00,", "3.00", "%"]
    )
    data = run("bench", "kv", book, "--length", "64K", "--model", "salalocal-pocket", "--json").data
    assert data["rows"][0]["changed_share"] == 0.02
    assert run("bench", "kv", book, "--length", "16K,32K").code == 2
