"""How a run starts and ends: help at once, one line for what nobody foresaw, a traceback when asked for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import Run, ScriptedEngine

import salalocal
from salalocal.cli import docs
from salalocal.errors import EngineFailure

ROOT = Path(__file__).resolve().parents[2]

BROKEN = """
import sys, salalocal
def load(name, **options):
    raise ZeroDivisionError("by no means")
salalocal.load = load
from salalocal.cli import main
main(sys.argv[1:])
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120)


def test_the_page_of_commands_is_current() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == docs.markdown(), (
        "run: python -m salalocal.cli.docs docs/cli.md"
    )


def test_every_verb_is_on_the_page() -> None:
    page = docs.markdown()
    for verb in ("chat", "ask", "doc tokens", "show", "list", "quantize", "doctor", "verify", "ui"):
        assert f"## salalocal {verb}\n" in page
    assert "\x1b" not in page


def test_help_needs_no_torch() -> None:
    code = "import sys, salalocal.cli.app; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_bare_program_and_module_print_the_help(run: Run) -> None:
    bare = run()
    assert bare.code == 0
    assert "Usage: salalocal" in bare.out
    assert python("-m", "salalocal", "--help").stdout == run("--help").out


def test_version(run: Run) -> None:
    assert run("--version").out == f"salalocal {salalocal.__version__}\n"


def test_an_error_nobody_foresaw_is_one_line(book: Path) -> None:
    result = python("-c", BROKEN, "ask", str(book), "What?")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "error: unexpected ZeroDivisionError: by no means (the same command with --debug shows where)\n"
    )


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where(book: Path, place: str) -> None:
    words = ["ask", str(book), "What?"]
    words = ["--debug", *words] if place == "before" else [*words, "--debug"]
    result = python("-c", BROKEN, *words)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: by no means" in result.stderr


def test_debug_keeps_exit_code_and_line(run: Run, engine: ScriptedEngine, book: Path) -> None:
    engine.limit = 3
    outcome = run("ask", book, "What?", "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.error_lines[-1].startswith("error: 42 tokens")


def test_a_failure_that_input_cannot_mend_exits_with_1(
    run: Run, engine: ScriptedEngine, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del engine

    def load(*_: object, **__: object) -> None:
        raise EngineFailure("the GPU\nis gone")

    monkeypatch.setattr(salalocal, "load", load)
    outcome = run("ask", book, "What?")
    assert outcome.code == 1
    assert outcome.err == "error: the GPU is gone\n"


LOADING = """
import sys, salalocal
def load(name, **options):
    print("loading", flush=True)
    while True:
        pass
salalocal.load = load
from salalocal.cli import main
main(sys.argv[1:])
"""

IMPORTING = """
import sys
from salalocal.cli import main
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "typer":
            print("importing", flush=True)
            while True:
                pass
sys.meta_path.insert(0, Finder())
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
@pytest.mark.parametrize("code", [LOADING, IMPORTING], ids=["loading", "importing"])
def test_ctrl_c_before_there_is_an_engine(book: Path, code: str) -> None:
    words = [sys.executable, "-c", code, "ask", str(book), "What?"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() in ("loading", "importing")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "stopped\n"


def test_a_light_start_hears_ctrl_c() -> None:
    code = "import sys, salalocal.cli; sys.exit('typer' in sys.modules or 'rich' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m salalocal --help | true"
    result = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert result.stderr == ""
