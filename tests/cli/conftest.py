"""Command lines run inside the test process, over the scripted engine."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scripted import Outcome, Run, ScriptedEngine

import salalocal
from salalocal.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command line with `lines` on stdin; neither stream is a terminal."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run_command(*words: object, lines: list[str] | None = None) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines or [])))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "\x1b" not in captured.out + captured.err, "control codes without a terminal"
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    return run_command


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What `salalocal.load` gives in this test."""
    engine = ScriptedEngine()

    def load(
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        prefill: str = "full",
        gpu_memory: int | None = None,
        kv: str = "full",
    ) -> ScriptedEngine:
        engine.loaded_as = (name, device, dtype, prefill, gpu_memory, kv)
        return engine

    monkeypatch.setattr(salalocal, "load", load)
    return engine


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of 40 different words on 4 lines."""
    path = tmp_path / "harbour.md"
    path.write_text("\n".join(" ".join(f"word{row}{n}" for n in range(10)) for row in range(4)), encoding="utf-8")
    return path
