"""Facts files: what is read, and that every bad row is named by its line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from salalocal.errors import InvalidRequest
from salalocal.evaluate.fact_rows import FactRow, draw_rows, read_rows

GOOD = {"fact": "The quay is old.", "question": "How is the quay?", "answers": ["old"]}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def test_rows_with_and_without_facts(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "", {"question": "Who?"}, {"fact": None, "question": "Who?", "answers": [], "id": 7})
    assert read_rows(path) == (
        FactRow(1, "How is the quay?", "The quay is old.", ("old",)),
        FactRow(3, "Who?"),
        FactRow(4, "Who?"),
    )


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("{", "JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "nested|JSON"),
        ({"fact": "x"}, '"question" is missing'),
        ({**GOOD, "question": "  "}, '"question" is empty'),
        ({**GOOD, "question": 7}, '"question" must be text, not 7'),
        ({**GOOD, "answers": []}, '"answers"'),
        ({**GOOD, "answers": "old"}, '"answers"'),
        ({**GOOD, "answers": ["old", None]}, '"answers"'),
        ({**GOOD, "answers": [""]}, '"answers"'),
        ({**GOOD, "fact": ["x"]}, '"fact"'),
        ({**GOOD, "fact": ""}, '"fact"'),
        ({"question": "Who?", "answers": ["x"]}, '"fact" is missing'),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, row: object, names: str) -> None:
    with pytest.raises(InvalidRequest, match=names) as refused:
        read_rows(write(tmp_path, GOOD, "", row))
    assert "facts.jsonl, line 3: " in str(refused.value)
    assert len(str(refused.value)) < len(str(tmp_path)) + 250


def test_files_that_hold_no_rows(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")
    with pytest.raises(InvalidRequest, match="no rows"):
        read_rows(write(tmp_path, "", "  "))
    (tmp_path / "facts.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(InvalidRequest, match="UTF-8"):
        read_rows(tmp_path / "facts.jsonl")


def test_drawing_rows_is_repeatable_and_keeps_their_order() -> None:
    rows = tuple(FactRow(line, f"question {line}") for line in range(50))
    assert draw_rows(rows, None, 1) == rows
    assert draw_rows(rows, 99, 1) == rows
    drawn = draw_rows(rows, 10, 1)
    assert len(set(drawn)) == 10
    assert list(drawn) == sorted(drawn, key=lambda row: row.line)
    assert drawn == draw_rows(rows, 10, 1) != draw_rows(rows, 10, 2)
