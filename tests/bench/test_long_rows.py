"""Rows of `bench long`: their file, and the time model fitted to them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


from salalocal.bench.long_model import scoring_flop, time_models
from salalocal.bench.long_rows import LongRow, LongTable, Traffic
from salalocal.bench.made_model import released_config
from salalocal.errors import InvalidRequest


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"version": 2, "runs": {}, "rows": []}', '{"version": 1, "runs": {}, "rows": [{"x": 1}]}']
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match="not a file of this version's 'salalocal bench long'"):
        LongTable(path)
    assert path.read_text() == text


def test_a_row_comes_back_from_its_file(tmp_path: Path) -> None:
    row = LongRow(
        "salalocal", 1 << 20, "replayed", "fp8", 8 << 30, 8192, True, "a card", "a run", 42.0, 3.0, 64, 7 << 30,
        "process", 9 << 30, 5 << 30, 1.5, Traffic(1, 2, 3), Traffic(4, 5, 6), {"flash": 2.0}, "a note", 40.0, 320.0,
    )  # fmt: skip
    table = LongTable(tmp_path / "rows.json")
    table.runs["a run"] = {"torch": "2"}
    table.add(row)
    again = LongTable(tmp_path / "rows.json")
    assert (again.rows, again.runs) == ([row], table.runs)
    assert again.as_data() == json.loads((tmp_path / "rows.json").read_text())


def test_rows_from_before_there_were_plans(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    table = LongTable(path)
    table.add(measured(1 << 16, 2.0))
    data = json.loads(path.read_text())
    for name in ("planned_seconds", "planned_tokens_per_second"):
        del data["rows"][0][name]
    path.write_text(json.dumps(data))
    assert LongTable(path).rows == table.rows


def measured(tokens: int, seconds: float, **other: object) -> LongRow:
    row = LongRow("salalocal", tokens, "own", "full", None, 8192, False, "a card", "a run", seconds)
    return replace(row, **other)  # type: ignore[arg-type]


def test_the_time_model() -> None:
    a, b = 36e-6, 2e-11
    lengths = [1 << exponent for exponent in range(16, 22)]
    exact = [measured(count, a * count + b * count**2) for count in lengths]
    others = [measured(1 << 16, 99.0, selection="replayed"), measured(1 << 18, 45.0, model="dense peer")]
    staged = measured(1 << 16, 50.0, staged=True)
    failed = replace(measured(1 << 22, 0.0), ttft_seconds=None, note="out of memory")
    (model,) = time_models([staged, *exact, *others, failed])
    assert (model.a, model.b) == pytest.approx((a, b))
    assert list(model.residuals) == lengths
    assert all(abs(residual) < 1e-9 for residual in model.residuals.values())
    assert model.seconds(1000) == pytest.approx(1000 * a + 1e6 * b)
    off = [*exact[:-1], measured(lengths[-1], 1.1 * exact[-1].ttft_seconds)]
    (model,) = time_models(off)
    assert model.residuals[lengths[-1]] < 0 < model.residuals[lengths[-2]]


def test_scores_of_the_released_model() -> None:
    assert scoring_flop(released_config()) == 2560
