"""The chat's line in a pseudo-terminal: Ctrl-C on an empty line leaves, on a half-typed one it does not."""

from __future__ import annotations

import codecs
import os
import select
import subprocess
import sys
import time

import psutil
import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are a POSIX thing")

PROGRAM = """
from salalocal.cli.prompt import read_line
while (line := read_line()) is not None:
    print(f"[{line}]", flush=True)
print("[left]", flush=True)
"""


class Typist:
    """A person at a terminal: types, and reads what appears."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=slave, stdout=slave, stderr=slave, env=environment,
            start_new_session=True, preexec_fn=lambda: take_terminal(slave),
        )  # fmt: skip
        os.close(slave)
        self.screen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, keys: str) -> None:
        # A signal that comes between the prompt and readline's wait for keys is only seen with the next key.
        end = time.monotonic() + 20
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING and time.monotonic() < end:
            time.sleep(0.01)
        os.write(self.master, keys.encode())

    def until(self, text: str, seconds: float = 20) -> str:
        """What appeared up to and with `text`."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} never appeared in {self.screen!r}"
            try:
                self.screen += self._decoder.decode(os.read(self.master, 4096))
            except OSError:  # Linux reports the other side's exit as an input error
                assert text in self.screen, f"it ended with {self.screen!r}"
        seen, _, self.screen = self.screen.partition(text)
        return seen + text


def take_terminal(slave: int) -> None:
    """Makes the pseudo-terminal the child's own, so that Ctrl-C becomes a signal to it."""
    import fcntl
    import termios

    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)


@pytest.fixture
def typist():
    person = Typist()
    person.until("› ")
    yield person
    person.process.kill()
    person.process.wait()
    os.close(person.master)


def test_a_line(typist: Typist) -> None:
    typist.type("When was it built?\r")
    typist.until("[When was it built?]")


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_leaving(typist: Typist, key: str) -> None:
    typist.type(key)
    typist.until("[left]")
    assert typist.process.wait(10) == 0


def test_ctrl_c_throws_a_half_typed_line_away(typist: Typist) -> None:
    typist.type("When was")
    typist.until("When was")
    typist.type("\x03")
    typist.until("› ")
    typist.type("By whom?\r")
    typist.until("[By whom?]")
