"""Takes the README's picture of the window, with the real engine and the document shipped with the project.

    python tests/ui/make_screenshot.py [FOLDER]

Writes window.png into FOLDER (docs/images without one), and window-*.png of the other states: narrow, dark,
reading, a document that does not fit.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))

from browser import REAL, chromium, running

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples" / "kestrel-rock.pdf"
QUESTIONS = (
    "What was the most common entry in the diary of Tobias Crane?",
    "When did the last keeper leave Kestrel Rock?",
)
PATIENCE_MS = 300_000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, running(REAL, Path(temporary)) as window, chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(window.url)
        page.get_by_text("Nothing here yet.").wait_for()
        page.wait_for_timeout(500)
        page.screenshot(path=folder / "window-empty.png")

        page.locator("#sl-drop input[type=file]").set_input_files(DOCUMENT)
        page.locator(".sl-item").wait_for()
        page.get_by_role("button", name=re.compile(r"^Read [\d,]+ tokens$")).click()
        page.get_by_text(re.compile(r"tokens/s · .* left")).wait_for()
        page.screenshot(path=folder / "window-reading.png")
        page.get_by_role("button", name="Everything is read").wait_for()

        for number, question in enumerate(QUESTIONS, 1):
            page.get_by_label("Your question").fill(question)
            page.get_by_label("Your question").press("Enter")
            page.wait_for_function(f"document.querySelectorAll('.sl-usage').length === {number}")
        page.wait_for_timeout(500)
        page.screenshot(path=folder / "window.png")
        _other_looks(page, folder)


def _other_looks(page: Page, folder: Path) -> None:
    page.emulate_media(color_scheme="dark")
    page.reload()
    page.locator(".sl-usage").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "window-dark.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.locator(".sl-usage").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "window-narrow.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_label("Folder or file on this computer").fill(str(ROOT / "LICENSE"))
    page.get_by_label("Folder or file on this computer").press("Enter")
    page.locator(".sl-item").nth(1).wait_for()
    page.get_by_label("Folder or file on this computer").fill(str(ROOT / "ui"))
    page.get_by_label("Folder or file on this computer").press("Enter")
    page.locator(".sl-refused").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=folder / "window-refused.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
