"""`salalocal bench cards`: rows of cards that are not here, and that nobody takes them for measured."""

from __future__ import annotations

import pytest
from scripted import Run

from salalocal.cards import CARDS


def test_a_row_for_every_card_and_length(run: Run) -> None:
    outcome = run("bench", "cards", "--length", "64K,1M")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 1 + 2 * len(CARDS)
    assert "computed, not measured" in outcome.err
    rows = run("bench", "cards", "--length", "64K,1M", "--json").data
    assert [(row["card"], row["tokens"]) for row in rows[:2]] == [("RTX 5090", 1 << 16), ("RTX 5090", 1 << 20)]
    assert all(row["fits"] for row in rows)
    small = [row for row in rows if row["card"] == "RTX 4060"]
    assert [row["host_bytes"] > 0 for row in rows[:2] + small] == [False, False, True, True]
    assert small[0]["first_token_seconds"]["full"] < small[1]["first_token_seconds"]["full"]
    assert small[0]["first_token_seconds"]["int8"] < small[0]["first_token_seconds"]["full"]
    assert "fp8" not in next(row for row in rows if row["card"] == "RTX 3060")["first_token_seconds"]


@pytest.mark.parametrize("length", ["4K", "4M"])
def test_lengths_have_limits(run: Run, length: str) -> None:
    outcome = run("bench", "cards", "--length", length)
    assert outcome.code == 2
    assert "is outside 8K to 2M tokens" in outcome.error_lines[0]
