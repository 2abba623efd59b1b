"""`salalocal ui`: loads a model, serves the window on this machine, and ends cleanly.

Knows the server, the port and the temporary folder; the page itself is page.py, who may talk to it security.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

import salalocal
from salalocal import BadDocument, Engine, InvalidRequest
from salalocal_ui.session import Desk

if TYPE_CHECKING:
    from starlette.types import ASGIApp

DEFAULT_MODEL = "salalocal-pocket"
LOOPBACK = "127.0.0.1"
MAX_REQUEST_BYTES = 2**30
SHUTDOWN_SECONDS = 3


def run(
    model: str | None,
    *,
    host: str = LOOPBACK,
    port: int = 7860,
    documents: Sequence[Path] = (),
    open_browser: bool = True,
) -> None:
    """Serve the window until Ctrl-C.

    `model`: path, or the name of a model on this machine; None takes the embedded one. `documents`: files and
    folders put on the shelf at the start. `port`: 0 takes any free one.

    Raises:
        BadDocument: a path does not exist.
        InvalidRequest: `host` is not this machine, or the port is taken or out of range.
        SalaError: the model cannot be loaded.
        KeyboardInterrupt: Ctrl-C, after everything is put away.
    """
    refuse_missing(documents)
    name = model or DEFAULT_MODEL
    with listen(host, port) as listener:
        sys.stderr.write(f"Loading {Path(name).name}\n")
        engine = salalocal.load(name)
        serve(engine, Path(name).name, listener, documents=documents, open_browser=open_browser)


def serve(
    engine: Engine,
    model_name: str,
    listener: socket.socket,
    *,
    documents: Sequence[Path] = (),
    open_browser: bool = False,
) -> None:
    """Serve a loaded engine on a listening socket until SIGTERM; everything is put away at the end.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, so that its exit code is the same as while the model was loading.
    """
    with temporary_uploads():
        desk = Desk(engine, model_name=model_name)
        try:
            desk.add(*documents)
            _run_server(desk, listener, open_browser)
        finally:
            desk.close()


def refuse_missing(paths: Sequence[Path]) -> None:
    """A mistyped path must not wait for a model to load, nor for somebody to look at the page.

    Raises:
        BadDocument: names every path that is not there.
    """
    missing = [str(path) for path in paths if not os.path.exists(path.expanduser())]
    if len(missing) == 1:
        raise BadDocument(f"{missing[0]}: there is no such file or folder")
    if missing:
        raise BadDocument(f"{', '.join(missing)}: there are no such files or folders")


@contextmanager
def temporary_uploads() -> Iterator[Path]:
    """A folder for uploaded copies and for nothing else, removed at the end; also switches Gradio's telemetry off.

    Must surround the first import of gradio: it reads both settings while it is imported.
    """
    with tempfile.TemporaryDirectory(prefix="salalocal-ui-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield Path(folder)


def application(desk: Desk) -> ASGIApp:
    """The guarded web application over a desk. Imports gradio, so the settings above come first."""
    import gradio as gr
    from fastapi import FastAPI

    from salalocal_ui.page import MAX_UPLOAD_MIB, build
    from salalocal_ui.security import LocalOnly
    from salalocal_ui.theme import STYLE_SHEET, head_html, window_theme

    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    gr.mount_gradio_app(
        outer,
        build(desk),
        path="/",
        server_name=LOOPBACK,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_UPLOAD_MIB * 2**20,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=window_theme(),
        css_paths=[STYLE_SHEET],
        head=head_html(),
    )
    return LocalOnly(outer, max_body_bytes=MAX_REQUEST_BYTES)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """The listening socket, opened before the model is loaded: a taken port must not cost a minute of waiting.

    Raises:
        InvalidRequest: `host` is not this machine, or the port is taken or out of range.
    """
    if host not in (LOOPBACK, "localhost"):
        raise InvalidRequest(f"--host {host}: the window is served on {LOOPBACK} only; leave --host out")
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"--port {port}: a port is a number from 0 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name == "posix":
            # There it means "the last run's closing connections do not count"; on Windows it would share the port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(128)
        except OSError as error:
            raise InvalidRequest(
                f"port {port} cannot be used ({error.strerror}); close the other window, "
                f"or choose another with --port {port + 1 if port < 65535 else port - 1}"
            ) from error
        yield listener


def _run_server(desk: Desk, listener: socket.socket, open_browser: bool) -> None:
    app = application(desk)
    # The page follows running work over one long answer; uvicorn would wait for it and then complain.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    server = _Server(config, desk)
    url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
    threading.Thread(target=_announce, args=(server, url, open_browser), daemon=True).start()
    # Once it has shut down, uvicorn passes the signal on. Neither may end the process before all is put away.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        if server.interrupted:
            raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    """uvicorn's server that lets go of the page at the first Ctrl-C."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk
        self.interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self._desk.closing = True
        super().handle_exit(sig, frame)


def _announce(server: _Server, url: str, open_browser: bool) -> None:
    """Say where the window is once it answers, and open it."""
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    sys.stderr.write(f"The window is at {url} (Ctrl-C ends it)\n")
    sys.stderr.flush()
    if open_browser:
        webbrowser.open(url)
