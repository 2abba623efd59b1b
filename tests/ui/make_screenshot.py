"""Takes the README's picture of the window, with the real engine and the document shipped with the project.

    python tests/ui/make_screenshot.py [FOLDER] [--model NAME_OR_PATH]

Writes window.png into FOLDER (docs/images without one), and window-*.png of the other states: empty, dark, narrow,
and a long book that is being read, or that does not fit. Without a model it takes the one that the window takes.
What was read for the last answer is open on all of them.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from browser import chromium, running

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples" / "kestrel-rock.pdf"
LONG_DOCUMENT = ROOT / "examples" / "northanger-abbey.txt"
QUESTIONS = (
    "When did work on the rock begin?",
    "Where was the lens made?",
)
PATIENCE_MS = 300_000


def main(folder: Path, model: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "salalocal", "ui", "--port", "0", "--no-browser"]
    if model is not None:
        command += ["--model", model]
    with tempfile.TemporaryDirectory() as temporary, running(command, Path(temporary)) as window, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(window.url)
        page.get_by_text("Nothing here yet.").wait_for()
        page.wait_for_timeout(500)
        page.screenshot(path=folder / "window-empty.png")

        page.locator("#sl-drop input[type=file]").set_input_files(DOCUMENT)
        page.locator(".sl-item").wait_for()
        page.get_by_role("button", name=re.compile(r"^Read [\d,]+ tokens$")).click()
        page.get_by_role("button", name="Everything is read").wait_for()

        for number, question in enumerate(QUESTIONS, 1):
            page.get_by_label("Your question").fill(question)
            page.get_by_label("Your question").press("Enter")
            page.wait_for_function(f"document.querySelectorAll('.sl-usage').length === {number}")
        _open_last_evidence(page)
        page.screenshot(path=folder / "window.png")
        _other_looks(page, folder)


def _open_last_evidence(page: Page) -> None:
    """Also gives the page the moment that it needs to stand still."""
    page.locator(".sl-usage").first.wait_for()
    evidence = page.locator(".sl-read > summary")
    if evidence.count():
        evidence.last.click()
        page.get_by_label("Your question").focus()
    page.wait_for_timeout(500)


def _other_looks(page: Page, folder: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.reload()
    _open_last_evidence(page)
    page.screenshot(path=folder / "window-dark.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    _open_last_evidence(page)
    page.screenshot(path=folder / "window-narrow.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 800})
    _long_book(page, folder)


def _long_book(page: Page, folder: Path) -> None:
    """One picture of what becomes of it: that depends on how much the model can hold."""
    page.get_by_label("Folder or file on this computer").fill(str(LONG_DOCUMENT))
    page.get_by_label("Folder or file on this computer").press("Enter")
    page.locator(".sl-item").nth(1).wait_for()
    page.wait_for_timeout(500)
    if page.locator(".sl-refused").count():
        page.screenshot(path=folder / "window-refused.png")
        return
    page.locator("#sl-read").click()
    page.get_by_text(re.compile(r"tokens/s · .* left")).wait_for()
    page.screenshot(path=folder / "window-reading.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.model)
