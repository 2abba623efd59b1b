"""Nothing goes out: the core of the suite works in an empty network namespace and does not even try.

The child process runs where there is no network at all, so whatever needed one would fail; an audit hook in it
writes down each attempt, so whatever tried one and went on quietly is caught as well. `conftest.py` refuses other
machines in every test; this one holds it for native code too.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PRELUDE = """
import json, sys
attempts = []
def note(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        attempts.append([event, str(arguments[1])])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and arguments[0] not in ("localhost", "127.0.0.1"):
        attempts.append([event, str(arguments[0])])
sys.addaudithook(note)
result = {}
"""

CORE = """
from pathlib import Path
import salalocal
from salalocal.evaluate.golden import verify_cases

root = Path(sys.argv[1])
cases = sorted(path.parent.name for path in (root / "tests" / "golden").glob("*/case.json"))
(golden,) = verify_cases(root / "tests" / "golden", names=cases[:1])
result["golden"] = golden.passed

document = salalocal.read(root / "examples" / "kestrel-rock.pdf")
result["pages"] = max(span.page for file in document.files for span in file.spans)

engine = salalocal.load("smollm2")
session = engine.new_session()
ids = engine.encode("The lighthouse on Kestrel Rock")
logits = session.prefill(ids)
result["next"] = session.step(int(logits.argmax())).shape[0] == logits.shape[0]
events = engine.chat(engine.new_session(), [salalocal.Message("user", "Hello")], [], salalocal.Sampling(max_tokens=2))
result["answered"] = any(isinstance(event, salalocal.Token) for event in events)
"""

WINDOW = """
import time
import salalocal
from salalocal_ui.app import application, temporary_uploads
from salalocal_ui.session import Desk

desk = Desk(salalocal.load("smollm2"), model_name="smollm2")
with temporary_uploads():
    result["page"] = callable(application(desk))
    import gradio
    result["analytics"] = gradio.analytics.analytics_enabled()
    time.sleep(1)  # gradio reports, where it does, from threads
desk.close()
"""

REACH_OUT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
    result["reached"] = True
except OSError:
    result["reached"] = False
"""


@functools.cache
def empty_namespace() -> tuple[str, ...]:
    """The command that starts a process without any network; empty where this machine does not permit it."""
    tool = shutil.which("unshare")
    for options in (["--net"], ["--map-root-user", "--net"]) if tool else ():
        if subprocess.run([tool, *options, "true"], capture_output=True, check=False).returncode == 0:
            return (str(tool), *options)
    return ()


def run_offline(code: str, home: Path) -> dict[str, object]:
    unshare = empty_namespace()
    if not unshare:
        pytest.skip("this machine does not permit network namespaces (unshare --net)")
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(result | {{'attempts': attempts}}))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRADIO_"))}
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script, str(ROOT)],
        env=environment | {"SALALOCAL_HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def test_the_namespace_is_empty_and_attempts_are_seen(tmp_path: Path) -> None:
    result = run_offline(REACH_OUT, tmp_path)
    looked_up, connected = ["socket.getaddrinfo", "192.0.2.1"], ["socket.connect", "('192.0.2.1', 80)"]
    assert result == {"reached": False, "attempts": [looked_up, connected]}


def test_reading_and_answering_need_no_network_and_try_none(tmp_path: Path) -> None:
    result = run_offline(CORE, tmp_path)
    assert result == {"golden": True, "pages": 2, "next": True, "answered": True, "attempts": []}


def test_the_window_sends_no_telemetry(tmp_path: Path) -> None:
    result = run_offline(WINDOW, tmp_path)
    assert result == {"page": True, "analytics": False, "attempts": []}
