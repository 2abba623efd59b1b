"""The parser process: reads requests on stdin, answers on stdout, and confines itself first.

Run by `sandbox.py` with `python -m`, never imported. Knows the messages and the limits of the process; loads no torch,
for it must start fast and small. What it parses is hostile until proven otherwise: only data (JSON) goes back, and a
crash ends this process alone.

It says `ready` when it has loaded. A request is a line of JSON (kind, path, size_bytes, seconds, limits) and
`size_bytes` bytes of file; the answer is a line with the length of the JSON that follows.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from typing import Any

from salalocal.documents.formats import Kind
from salalocal.documents.limits import Limits
from salalocal.documents.parsers import parse
from salalocal.documents.sandbox import OUT_OF_MEMORY_STATUS
from salalocal.errors import BadDocument


def confine(memory_bytes: int) -> None:
    """Caps this process's memory where the system can (the parent watches it everywhere), no core dumps."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends this process
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere address space is no measure of memory
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def answer(request: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`{"files": ..., "skipped": ...}`, or `{"error": reason}`."""
    limits = Limits(**request["limits"])
    try:
        files, skipped = parse(Kind(request["kind"]), request["path"], data, limits)
    except BadDocument as error:
        return {"error": str(error)}
    return {"files": [asdict(file) for file in files], "skipped": [asdict(item) for item in skipped]}


def serve() -> None:
    """Answers requests until stdin ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        if sys.platform != "win32":
            # Ends even native code, and even if the parent is gone and cannot.
            signal.alarm(int(request["seconds"]) + 5)
        data = requests.read(request["size_bytes"])
        if len(data) < request["size_bytes"]:
            return
        reply = json.dumps(answer(request, data)).encode("ascii")
        del data
        if sys.platform != "win32":
            signal.alarm(0)
        answers.write(b"%d\n" % len(reply))
        answers.write(reply)
        answers.flush()


if __name__ == "__main__":
    confine(int(sys.argv[1]))
    try:
        serve()
    except MemoryError:
        sys.exit(OUT_OF_MEMORY_STATUS)
