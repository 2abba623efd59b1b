"""What the README and docs say can be typed can be typed: commands parse, cheap ones run, the demo answers.

The README's first screen is held to its promise too: two commands by line 20, the first answer by line 25.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from salalocal.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
ANSWER = "30 June 1984"
BOOK_ANSWER, BOOK_PLACE = "one hundred", "northanger-abbey.txt, line "
CHEAP = ("doc", "list", "show", "doctor")
"""Verbs that load no weights: shown with them, a command line is run as it stands."""


def fenced(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a Markdown text that are marked with one of the languages ("" is no mark)."""
    return [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if language in languages]


def command_lines(text: str) -> list[str]:
    """What a reader may type: each line of a shell block, and lines after a `$ ` in a block of output."""
    shell = [line for block in fenced(text, "sh", "bash", "console") for line in block.splitlines()]
    shown = [line[2:] for block in fenced(text, "") for line in block.splitlines() if line.startswith("$ ")]
    inline = re.findall(r"`((?:salalocal|make) [^`\n]+)`", text)
    return [line.strip() for line in (*shell, *shown, *inline) if line.strip()]


DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINES = sorted({(path.name, line) for path in DOCUMENTS for line in command_lines(path.read_text("utf-8"))})
SALALOCAL = [(name, line) for name, line in LINES if line.startswith("salalocal ") and "..." not in line]
MAKE = sorted({(name, line) for name, line in LINES if line.startswith("make ")})


def run(words: list[str], home: Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]]),
        "SALALOCAL_HOME": str(home),
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def parse(line: str) -> None:
    """Follows a command line into its verb and parses the rest there, without running anything.

    Raises typer.TyperException for an unknown verb or option.
    """
    command, words = get_command(app), shlex.split(line, comments=True)[1:]
    context = command.context_class(command)
    while True:
        _, rest, _ = command.make_parser(context).parse_args(args=list(words))
        if not rest or not hasattr(command, "commands"):
            return
        if rest[0] not in command.commands:
            raise typer.BadParameter(f"no such verb: {rest[0]}")
        command, words = command.commands[rest[0]], rest[1:]
        context = command.context_class(command, parent=context)


@pytest.mark.parametrize(("document", "line"), SALALOCAL, ids=[f"{name}: {line}" for name, line in SALALOCAL])
def test_every_command_line_shown_parses(document: str, line: str) -> None:
    del document  # in the name of the test
    parse(line)


@pytest.mark.parametrize("line", ["salalocal asks x y", "salalocal ask x y --loud", "salalocal doc count x"])
def test_a_command_line_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(typer.TyperException):
        parse(line)


@pytest.mark.parametrize(("document", "line"), MAKE, ids=[f"{name}: {line}" for name, line in MAKE])
def test_every_make_target_shown_exists(document: str, line: str, salalocal_home: Path) -> None:
    del document
    words = shlex.split(line, comments=True)
    planned = run([words[0], "--dry-run", *words[1:]], salalocal_home)
    assert planned.returncode == 0, planned.stderr


CHEAP_LINES = [line for name, line in SALALOCAL if name == "README.md" and shlex.split(line)[1] in CHEAP]


@pytest.mark.parametrize("line", CHEAP_LINES)
def test_cheap_command_lines_of_the_readme_run(line: str, salalocal_home: Path) -> None:
    done = run(shlex.split(line, comments=True), salalocal_home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_readme_shows_the_cheap_verbs() -> None:
    assert {shlex.split(line)[1] for line in CHEAP_LINES} == set(CHEAP)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_make_demo_answers_with_its_place(salalocal_home: Path) -> None:
    if run(["make", "--question", ".venv/.ready"], salalocal_home).returncode != 0:
        pytest.skip("this environment was not made by make, or is out of date: the demo would set it up first")
    done = run(["make", "--no-print-directory", "demo"], salalocal_home)
    assert done.returncode == 0, done.stdout + done.stderr
    answer, evidence = done.stdout.split("\n", 1)
    assert BOOK_ANSWER in answer
    assert BOOK_PLACE in evidence


def test_python_of_the_readme_answers(salalocal_home: Path) -> None:
    (example,) = fenced(README, "python")
    done = run([sys.executable, "-c", example], salalocal_home)
    assert done.returncode == 0, done.stderr
    assert ANSWER in done.stdout


def test_first_screen_has_two_commands_and_the_first_answer() -> None:
    lines = README.splitlines()
    assert {"make demo", "make test"} <= {line.split("#")[0].strip() for line in lines[:20]}
    assert any(ANSWER in line for line in lines[:25])


def test_links_and_folders_of_the_readme_exist() -> None:
    links = [link for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]+)\)", README) if "://" not in link]
    (tree,) = [block for block in fenced(README, "") if block.startswith("salalocal/ ")]
    folders = [line.split("/")[0] for line in tree.splitlines()]
    assert [path for path in links + folders if not (ROOT / path).exists()] == []
