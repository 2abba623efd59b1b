"""`salalocal ui`: opens the window, found through the entry point group "salalocal.ui" and never imported here."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from salalocal.cli.opening import choose_model
from salalocal.cli.options import ModelOption
from salalocal.errors import EngineFailure

GROUP = "salalocal.ui"


def ui(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Files and folders on the shelf from the start."),
    ] = None,
    model: ModelOption = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")
    ] = 7860,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the default browser.")
    ] = True,
) -> None:
    """Open the window in a browser; it is served to this machine only. Ctrl-C ends it."""
    window = next(iter(entry_points(group=GROUP)), None)
    if window is None:
        raise EngineFailure("no window is installed: install salalocal again, its package salalocal_ui is missing")
    window.load()(choose_model(model), port=port, documents=paths or (), open_browser=browser)


def register(app: typer.Typer) -> None:
    """Adds the verb to the command line."""
    app.command("ui", short_help="Open the window in a browser.")(ui)
