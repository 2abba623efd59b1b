"""What a terminal gets and what a pipe gets: the same words, control codes only for the terminal."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass

import pytest
from rich.console import Console

from salalocal.cli import terminal
from salalocal.cli.terminal import AnswerWriter, ReadingBar, human_bytes, human_count, human_seconds


@dataclass(frozen=True)
class Reading:
    done_tokens: int
    total_tokens: int = 8000
    tokens_per_second: float = 512.0
    seconds_left: float = 13.2


def console(width: int, *, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, highlight=False, legacy_windows=False)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Console:
    made = console(20, is_terminal=True)
    monkeypatch.setattr(terminal, "stdout", lambda: made)
    return made


def written(shown: Console, *pieces: str) -> list[str]:
    writer = AnswerWriter()
    for piece in pieces:
        writer.write(piece)
    writer.finish()
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue().split("\n")


def test_lines_break_between_words(narrow: Console) -> None:
    lines = written(narrow, "The light", "house at Ke", "strel Rock was", " built\nin 1893 by ", "masons")
    assert [line.rstrip() for line in lines] == [
        "The lighthouse at",
        "Kestrel Rock was",
        "built",
        "in 1893 by masons",
        "",
    ]
    assert all(len(line) <= 20 for line in lines)


def test_a_line_without_spaces_is_cut_at_the_edge_and_loses_nothing(narrow: Console) -> None:
    assert "".join(written(narrow, "x" * 50)) == "x" * 50


def test_wide_characters_count_double(narrow: Console) -> None:
    lines = written(narrow, "灯台は一八九三年に建てられた石造りの塔である")
    assert "".join(lines) == "灯台は一八九三年に建てられた石造りの塔である"
    assert all(2 * len(line) <= 20 for line in lines)


def test_indentation_stays(narrow: Console) -> None:
    assert written(narrow, "if x:\n    return 1\n") == ["if x:", "    return 1", ""]


@pytest.mark.parametrize(("answer", "expected"), [("done", "done\n"), ("done\n", "done\n"), ("", "")])
def test_a_pipe_gets_the_text_and_one_newline(answer: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    writer = AnswerWriter()
    writer.write(answer)
    writer.finish()
    assert capsys.readouterr().out == expected


def test_the_bar_shows_percent_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(120, is_terminal=True)
    monkeypatch.setattr(terminal, "stderr", lambda: shown)
    cancel = threading.Event()
    with ReadingBar(cancel) as bar:
        bar.show(Reading(2000))
        cancel.set()
    assert isinstance(shown.file, io.StringIO)
    text = shown.file.getvalue()
    assert text.index("reading") < text.index("stopping"), "Ctrl-C must be answered before the chunk ends"
    assert "25 %" in text
    assert "2,000 of 8,000 tokens · 512 tokens/s · 13 s left" in text


def test_without_a_terminal_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(120, is_terminal=False)
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(terminal, "stderr", lambda: shown)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with ReadingBar(threading.Event()) as bar:
        for done in (1000, 2000, 3000):
            bar.show(Reading(done))
    assert isinstance(shown.file, io.StringIO)
    assert shown.file.getvalue() == "reading 25 % · 2,000 of 8,000 tokens · 512 tokens/s · 13 s left\n"


def test_figures_as_people_say_them() -> None:
    assert [human_seconds(value) for value in (-1, 8.4, 125, 4330)] == ["0 s", "8 s", "2 min 05 s", "1 h 12 min"]
    assert [human_bytes(value) for value in (0, 999, 1000, 93_200_000, 18_900_000_000)] == [
        "0 B", "999 B", "1.0 kB", "93.2 MB", "18.9 GB",
    ]  # fmt: skip
    assert [human_count(value) for value in (12_345, 134_515_008, 9_500_000_000)] == ["12,345", "134.5M", "9.5B"]
