"""Rows for `salalocal evaluate facts`: answers lie in their facts, absent rows have none."""

from __future__ import annotations

import pytest

from salalocal.training.facts_file import rows
from salalocal.training.statements import Split


@pytest.mark.parametrize("split", Split)
def test_rows_hold_their_answers(split: Split) -> None:
    made = list(rows(split, 50, seed=1))
    assert len(made) == 50
    absent = [row for row in made if "fact" not in row]
    assert len(absent) == 10
    for row in made:
        if "fact" in row:
            answers = row["answers"]
            assert isinstance(answers, list)
            assert answers[0] in str(row["fact"])
