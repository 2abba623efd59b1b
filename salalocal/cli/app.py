"""The verbs put together, and how a run ends: exit codes, errors in one line, tracebacks with --debug.

0    done
1    it failed, and other input would not have helped
2    the input can be corrected: a file, a name, an option
130  stopped by Ctrl-C
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

import salalocal
from salalocal.cli import ask, bench, chat, doc, doctor, evaluate, models, plan, quantize, verify, window
from salalocal.cli.interrupt import EXIT_INTERRUPTED, say_stopped
from salalocal.cli.terminal import print_error, stdout
from salalocal.errors import BadInput, Cancelled, SalaError

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
_PLAIN_WORDS = (
    (r"Value error, ", ""),
    (r"Input should be a valid integer.*", "it must be a whole number"),
    (r"Input should be a valid number.*", "it must be a number"),
    (r"Input should be greater than or equal to ", "it must be at least "),
    (r"Input should be less than or equal to ", "it must be at most "),
    (r"Input should be ", "it must be "),
)


@contextmanager
def _saying_stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say_stopped()
        raise typer.Exit(EXIT_INTERRUPTED) from None


class _Verbs(TyperGroup):
    """Says that Ctrl-C ended a verb; typer by itself would only turn it into an exit code."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _saying_stopped():
            return super().make_context(*arguments, **named)

    def invoke(self, *arguments: Any) -> Any:
        with _saying_stopped():
            return super().invoke(*arguments)


app = typer.Typer(
    name="salalocal",
    cls=_Verbs,
    help="Read whole documents into a language model on this machine, and ask about them.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere on the line.")
    ] = False,
) -> None:
    del debug  # taken off the line by main, which is the one place that ends a run
    if version:
        stdout().out(f"salalocal {salalocal.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        stdout().out(context.get_help())
        raise typer.Exit


for verb in (chat, ask, doc, models, plan, quantize, doctor, verify, evaluate, bench, window):
    verb.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """As `salalocal.cli.main`, which deals with Ctrl-C before and after."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    _accept_any_character()
    if not debug:
        sys.excepthook = _unexpected
    sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    try:
        # Not `app(words)`: that would put typer's own excepthook in the place of ours.
        code = get_command(app).main(words, prog_name="salalocal", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        verb = context.command_path if context is not None else "salalocal"
        message = _plain(error.format_message())
        separator = "" if message.endswith("?") else ";"
        print_error(f"{message}{separator} '{verb} --help' explains")
        return EXIT_BAD_INPUT
    except Cancelled as error:
        return _report(error, debug, EXIT_INTERRUPTED)
    except BadInput as error:
        return _report(error, debug, EXIT_BAD_INPUT)
    except SalaError as error:
        return _report(error, debug, EXIT_FAILURE)
    except BrokenPipeError:
        # The reader of our output has gone (`salalocal list | head`); flushing again at exit would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    return code if isinstance(code, int) else 0


def _plain(message: str) -> str:
    """typer's and pydantic's words for a refused option, in ours."""
    for pattern, words in _PLAIN_WORDS:
        message = re.sub(pattern, words, message)
    return message.rstrip(".")


def _report(error: SalaError, debug: bool, code: int) -> int:
    if debug:
        traceback.print_exception(error)
    print_error(str(error))
    return code


def _unexpected(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """`sys.excepthook` of a run without --debug: an error nobody foresaw, still in one line."""
    if issubclass(kind, KeyboardInterrupt):
        say_stopped()
        return
    detail = f": {error}" if str(error) else ""
    print_error(f"unexpected {kind.__name__}{detail} (the same command with --debug shows where)")


def _accept_any_character() -> None:
    """A Windows console or a C locale cannot show every character; it gets '?' rather than a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
