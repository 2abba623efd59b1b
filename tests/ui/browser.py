"""A window in its own process and a Chromium to look at it with. Knows no test."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
SCRIPTED = [sys.executable, str(HERE / "serve_fake.py")]
REAL = [sys.executable, "-m", "salalocal", "ui", "--model", "smollm2", "--port", "0", "--no-browser"]
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_SECONDS = 120
SETTLING_MS = 2000


@dataclass(frozen=True)
class Window:
    """A running window: its address, its process, and the folder that holds its temporary files."""

    url: str
    process: subprocess.Popen[str]
    temporary: Path

    def end(self, how: signal.Signals = signal.SIGINT, seconds: float = 30) -> int:
        """Press Ctrl-C, or what `how` says, and wait; returns the exit code."""
        self.process.send_signal(how)
        return self.process.wait(seconds)


@contextmanager
def running(command: Sequence[str], temporary: Path) -> Iterator[Window]:
    """Start a window and wait until it says where it is; it is ended with the block."""
    log = temporary / "window.log"
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "2"}
    with log.open("w") as output:
        process = subprocess.Popen(list(command), stderr=output, stdout=output, text=True, env=environment)
        try:
            yield Window(_address(process, log), process, temporary)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            return found.group(0)
        time.sleep(0.1)
    raise AssertionError(f"the window did not start: {log.read_text()}")


def chromium_path() -> str | None:
    """Debian's or Google's Chromium, or None."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium that asks no other machine for anything."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(CHROMIUM_ARGUMENTS))
        yield browser
        browser.close()


def open_page(page: Page, url: str) -> None:
    """Opens the window and gives its first event time to get through: what is asked in the very moment in which that
    one's stream closes, faster than any person, Gradio's client may never show."""
    page.goto(url)
    page.get_by_label("Your question").wait_for()
    page.wait_for_timeout(SETTLING_MS)
