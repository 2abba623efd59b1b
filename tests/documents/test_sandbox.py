"""The parser process: its limits, its death, its restart."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from salalocal.documents.formats import Kind
from salalocal.documents.limits import DEFAULT_LIMITS
from salalocal.documents.sandbox import Sandbox
from salalocal.errors import BadDocument, EngineFailure

PAGE = b"<p>some text</p>"


def test_one_process_serves_many_files_and_ends_with_the_sandbox(make_pdf: Callable[..., bytes]) -> None:
    with Sandbox(DEFAULT_LIMITS) as sandbox:
        sandbox.parse(Kind.HTML, "a.html", PAGE)
        (child,) = [process for process in psutil.Process().children() if "parser_child" in " ".join(process.cmdline())]
        files, skipped = sandbox.parse(Kind.PDF, "b.pdf", make_pdf([["page"]]))
        assert child.is_running()
        assert files[0].spans[0].text == "page\n"
        assert skipped == ()
    assert not psutil.pid_exists(child.pid)


def test_time_limit_and_restart() -> None:
    nested = b"<div>" * 200_000 + b"x"  # the HTML parser takes quadratic time on these
    with Sandbox(replace(DEFAULT_LIMITS, parser_seconds=1.0)) as sandbox:
        with pytest.raises(BadDocument, match="takes more than 1 s to read"):
            sandbox.parse(Kind.HTML, "deep.html", nested)
        files, _ = sandbox.parse(Kind.HTML, "a.html", PAGE)
        assert files[0].spans[0].text == "some text\n"


def test_memory_limit() -> None:
    limits = replace(DEFAULT_LIMITS, parser_bytes=300 << 20)
    with Sandbox(limits) as sandbox:
        with pytest.raises(BadDocument, match=r"needs more than 300\.0 MB of memory"):
            sandbox.parse(Kind.HTML, "wide.html", b"<p>a" * 4_000_000)
        sandbox.parse(Kind.HTML, "a.html", PAGE)


def test_text_limit() -> None:
    with (
        Sandbox(replace(DEFAULT_LIMITS, text_bytes=1000)) as sandbox,
        pytest.raises(BadDocument, match=r"holds 1\.2 KB of text; a file may hold 1,000 bytes"),
    ):
        sandbox.parse(Kind.HTML, "a.html", b"<p>" + b"x" * 1200)


def test_a_crash_is_one_files_trouble() -> None:
    with Sandbox(DEFAULT_LIMITS) as sandbox:
        sandbox.parse(Kind.HTML, "a.html", PAGE)
        for child in psutil.Process().children():
            if "parser_child" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGSEGV)
                child.wait(10)
        with pytest.raises(BadDocument, match="its parser stopped working on it"):
            sandbox.parse(Kind.HTML, "b.html", PAGE)
        sandbox.parse(Kind.HTML, "c.html", PAGE)


def test_a_process_that_cannot_start_is_not_the_documents_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("salalocal.documents.sandbox._CHILD", "salalocal.documents.no_such_module")
    with Sandbox(DEFAULT_LIMITS) as sandbox, pytest.raises(EngineFailure, match="does not start"):
        sandbox.parse(Kind.HTML, "a.html", PAGE)
