"""Parsing in a process of its own: what is parsed can crash, hang or swell without harm to this process.

Knows how to start, watch, end and restart that process. Knows no formats.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import psutil

from salalocal.documents.document import Skipped, SourceFile, Span
from salalocal.documents.formats import Kind, Parsed
from salalocal.documents.limits import Limits, size_text
from salalocal.errors import BadDocument, EngineFailure

_CHILD = "salalocal.documents.parser_child"
_WATCH_SECONDS = 0.05
OUT_OF_MEMORY_STATUS = 3
"""With this status the parser process ends when it is refused memory."""


class Sandbox:
    """One parser process at a time, started when first needed and again after it had to be ended.

    Use as a context manager. Not thread-safe: one file is parsed at a time.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the parser process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written has no reader any more
                    continue

    def parse(self, kind: Kind, path: str, data: bytes) -> Parsed:
        """The text of `data`, parsed as `kind` and shown as `path`.

        Raises BadDocument if it cannot be read, or not within the limits of time and memory; EngineFailure
        if the parser process cannot be started.
        """
        process = self._process or self._start()
        watch = _Watch(process, self._limits)
        answered = False
        try:
            reply = self._ask(process, kind, path, data)
            parsed = _parsed(reply)
            answered = True
        except (OSError, ValueError, KeyError, TypeError) as error:  # the process ended, or what it sent is no answer
            raise BadDocument(watch.stop() or self._death_reason(process)) from error
        finally:
            watch.stop()
            if not answered:  # also when Ctrl-C came: an answer that is still to come must not meet another file
                self.close()
        if isinstance(parsed, str):
            raise BadDocument(parsed)
        return parsed

    def _death_reason(self, process: subprocess.Popen[bytes]) -> str:
        try:
            status: int | None = process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = None  # it lives, and talks nonsense
        if status == OUT_OF_MEMORY_STATUS:
            return _too_large(self._limits)
        return f"is damaged or too large: its parser stopped working on it (status {status})"

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-X", "utf8", "-m", _CHILD, str(self._limits.parser_bytes)]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineFailure(f"the parser process cannot be started ({error})") from error
        self._process = process
        if process.stdout is None or process.stdout.readline(16).strip() != b"ready":
            self.close()
            raise EngineFailure(
                f"the parser process does not start (status {process.returncode}): "
                f"run `{sys.executable} -m {_CHILD} {self._limits.parser_bytes}` to see why"
            )
        return process

    def _ask(self, process: subprocess.Popen[bytes], kind: Kind, path: str, data: bytes) -> dict[str, Any]:
        """Sends the request and waits for the answer; OSError or ValueError if none comes."""
        if process.stdin is None or process.stdout is None:
            raise OSError("the parser process has no pipes")
        request = {
            "kind": kind.value,
            "path": path,
            "size_bytes": len(data),
            "seconds": self._limits.parser_seconds,
            "limits": asdict(self._limits),
        }
        process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
        process.stdin.write(data)
        process.stdin.flush()
        size_bytes = int(process.stdout.readline(32))
        if not 0 <= size_bytes <= self._limits.parser_bytes:
            raise ValueError(f"an answer of {size_bytes} bytes")
        reply = json.loads(process.stdout.read(size_bytes))
        if not isinstance(reply, dict):
            raise ValueError("an answer that is no object")
        return reply


class _Watch:
    """Ends a process that takes too long or too much memory, and says which it was."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        self._process = process
        self._limits = limits
        self._reason: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="parser-watch", daemon=True)
        self._thread.start()

    def stop(self) -> str | None:
        """Ends the watch; the reason if it ended the process. May be called twice."""
        self._stopped.set()
        self._thread.join()
        return self._reason

    def _run(self) -> None:
        deadline = time.monotonic() + self._limits.parser_seconds
        while not self._stopped.wait(_WATCH_SECONDS):
            if time.monotonic() > deadline:
                self._reason = f"takes more than {self._limits.parser_seconds:g} s to read: divide or simplify it"
            elif _resident_bytes(self._process.pid) > self._limits.parser_bytes:
                self._reason = _too_large(self._limits)
            if self._reason is not None:
                self._process.kill()
                return


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _too_large(limits: Limits) -> str:
    return f"needs more than {size_text(limits.parser_bytes)} of memory to read: divide it"


def _parsed(reply: dict[str, Any]) -> Parsed | str:
    """What an answer holds, or the reason that it gives for holding nothing; KeyError or TypeError if neither."""
    if "error" in reply:
        return str(reply["error"])
    files = tuple(
        SourceFile(file["path"], tuple(Span(**span) for span in file["spans"]), file["encoding"])
        for file in reply["files"]
    )
    return files, tuple(Skipped(**item) for item in reply["skipped"])
