"""The rows of a facts file: {"fact", "question", "answers"}, one JSON object a line. Knows no model.

A row without fact and answers asks for something that is not in the text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NoReturn

from salalocal.errors import InvalidRequest

MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class FactRow:
    """One question.

    Attributes:
        line: in the file, from 1.
        question: as asked.
        fact: the sentence to plant; None where the answer must not be in the text.
        answers: any of them counts; empty where `fact` is None.
    """

    line: int
    question: str
    fact: str | None = None
    answers: tuple[str, ...] = ()


def read_rows(path: Path) -> tuple[FactRow, ...]:
    """Reads a facts file; empty lines are skipped, further fields of a row are left alone.

    Raises:
        InvalidRequest: unreadable, larger than MAX_FILE_BYTES, no rows, or a row that is not one, named by its line
            and field.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidRequest(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; give fewer rows")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: not UTF-8 text (byte {error.start})") from error
    lines = enumerate(text.split("\n"), start=1)
    rows = tuple(_row(f"{path}, line {number}", number, line) for number, line in lines if line.strip())
    if not rows:
        raise InvalidRequest(f'{path}: no rows; each line is a JSON object with "fact", "question" and "answers"')
    return rows


def draw_rows(rows: tuple[FactRow, ...], count: int | None, seed: int) -> tuple[FactRow, ...]:
    """`count` of the rows, drawn by `seed`, in the file's order; all of them where `count` is None."""
    if count is None or count >= len(rows):
        return rows
    return tuple(rows[index] for index in sorted(Random(f"rows {seed}").sample(range(len(rows)), count)))


def _row(where: str, number: int, line: str) -> FactRow:
    if len(line) > MAX_LINE_BYTES:
        raise InvalidRequest(f"{where}: longer than {MAX_LINE_BYTES:,} characters")
    try:
        values = json.loads(line)
    except RecursionError:
        raise InvalidRequest(f"{where}: nested too deeply for a row") from None
    except ValueError as error:
        raise InvalidRequest(f"{where}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f'{where}: a JSON object with "fact", "question" and "answers" is needed')
    question = _text(where, "question", values.get("question"))
    if values.get("fact") is None and not values.get("answers"):
        return FactRow(number, question)
    answers = values.get("answers")
    if values.get("fact") is None:
        _fail(where, "fact", 'is missing though there are answers; leave out both for "not in the text"')
    if not isinstance(answers, list) or not answers:
        _fail(where, "answers", "must be a list of at least one text, since there is a fact")
    fact = _text(where, "fact", values["fact"])
    return FactRow(number, question, fact, tuple(_text(where, "answers", answer) for answer in answers))


def _text(where: str, field: str, value: object) -> str:
    if value is None:
        _fail(where, field, "is missing")
    if not isinstance(value, str):
        _fail(where, field, f"must be text, not {json.dumps(value, default=str)[:40]}")
    if not value.strip():
        _fail(where, field, "is empty")
    return " ".join(value.split()) if field != "fact" else value.strip()


def _fail(where: str, field: str, problem: str) -> NoReturn:
    raise InvalidRequest(f'{where}: field "{field}" {problem}')
