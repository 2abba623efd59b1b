"""Writes docs/cli.md from the verbs' own --help: `python -m salalocal.cli.docs [FILE]`.

A test compares the file in the repository with `markdown()`, so that neither can drift from the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from salalocal.cli.app import app

HEAD = """# The command line

Written by `python -m salalocal.cli.docs docs/cli.md` from the commands' own `--help`; change it there.

Answers and data go to stdout, progress and notes to stderr. Where a stream is not a terminal it gets plain
text. Errors are one line on stderr; `--debug` anywhere on the line adds the traceback.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | it failed, and other input would not have helped; or a check did not pass |
| 2 | the input can be corrected: a file, a name, an option, a document that does not fit |
| 130 | stopped by Ctrl-C |
"""
WIDTH = 100


def markdown() -> str:
    """The whole page."""
    parts = [HEAD]
    for words in _command_lines():
        parts.append(f"\n## {' '.join(['salalocal', *words])}\n\n```\n{_help(words)}\n```\n")
    return "".join(parts)


def _command_lines() -> Iterator[list[str]]:
    """The words of every command, the bare program first, groups before what is in them."""
    pending: list[tuple[list[str], object]] = [([], get_command(app))]
    while pending:
        words, command = pending.pop(0)
        yield words
        children = getattr(command, "commands", {})
        pending[:0] = [([*words, name], child) for name, child in children.items()]


def _help(words: list[str]) -> str:
    environment = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1"}
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="salalocal", env=environment)
    assert result.exit_code == 0, f"{' '.join(words)} --help exits with {result.exit_code}"
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
    else:
        sys.stdout.write(markdown())
