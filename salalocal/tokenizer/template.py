"""Renders a model's chat template in a child process, around stand-ins for what people and documents say.

Knows roles and pieces of text; knows no tokens. Contents never enter the child and are never searched for
template words: each message is rendered as a private random word, and the text between these words is what
the template itself contributes. Cost: one child of about 0.1 s for each new sequence of roles.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from salalocal.errors import BadTokenizer, EngineFailure

MAX_SECONDS = 2
MAX_MEMORY_BYTES = 256 * 1024 * 1024
MAX_OUTPUT_CHARS = 4 * 1024 * 1024
MAX_TEMPLATE_CHARS = 1024 * 1024
_START_SECONDS = 20  # for the child to start on a busy machine, beyond MAX_SECONDS of rendering
_CHILD = Path(__file__).with_name("render_child.py")
_TIMED_OUT = 3
_KEPT_LAYOUTS = 64


class TemplateRefused(BadTokenizer):
    """The template itself raised: it does not take this sequence of roles."""


class ChatTemplate:
    """A Jinja chat template of a model.

    Raises `BadTokenizer` for a template of more than a million characters; everything else shows when it
    is used, because only the child process looks at it.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise BadTokenizer(
                f"the chat template has {len(source):,} characters; at most {MAX_TEMPLATE_CHARS:,} are read"
            )
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._layouts: dict[tuple[str, ...], tuple[str, ...]] = {}

    def layout(self, roles: Sequence[str]) -> tuple[str, ...]:
        """The template's own text before, between and after the messages: len(roles) + 1 pieces.

        The last one ends where the assistant begins to speak. Raises `TemplateRefused` when the template
        does not take these roles, `BadTokenizer` when it fails, is stopped, or does not repeat every
        message exactly once and unchanged.
        """
        key = tuple(roles)
        if key not in self._layouts:
            if len(self._layouts) >= _KEPT_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)), None)
            self._layouts[key] = self._render(key)
        return self._layouts[key]

    def _render(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        secret = secrets.token_hex(12)
        words = [f"Text{secret}n{index}e" for index in range(len(roles))]
        messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
        rest = render(self.source, {"messages": messages, "add_generation_prompt": True, **self._tokens})
        pieces = []
        for role, word in zip(roles, words, strict=True):
            before, found, rest = rest.partition(word)
            if not found or word in rest:
                raise BadTokenizer(
                    f"the chat template does not repeat each message once and unchanged (a {role} message "
                    f"of {len(roles)}), so documents cannot be kept apart from its markers"
                )
            pieces.append(before)
        pieces.append(rest)
        if any(secret.casefold() in piece.casefold() for piece in pieces):
            raise BadTokenizer("the chat template repeats or alters a message, so it cannot be used safely")
        return tuple(pieces)


def render(
    source: str,
    variables: dict[str, object],
    *,
    seconds: int = MAX_SECONDS,
    memory_bytes: int = MAX_MEMORY_BYTES,
    output_chars: int = MAX_OUTPUT_CHARS,
) -> str:
    """The text of the Jinja template `source`, rendered in a child process within the limits.

    Raises `TemplateRefused` with the template's own words when it calls `raise_exception`, `BadTokenizer`
    when it fails or passes a limit, and `EngineFailure` when no child can be started.
    """
    job = {
        "template": source,
        "variables": variables,
        "seconds": seconds,
        "memory_bytes": memory_bytes,
        "output_chars": output_chars,
    }
    try:
        child = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_CHILD)],  # -P: our folder is no place for its imports
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise EngineFailure(f"the process that renders chat templates did not start: {error}") from error
    try:
        output = _output_of(child, json.dumps(job).encode(), seconds, memory_bytes)
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()
    return _text_of(output, child.returncode, seconds)


def _output_of(child: subprocess.Popen[bytes], job: bytes, seconds: int, memory_bytes: int) -> bytes:
    """What the child wrote; it is killed past the wall-clock limit or past the memory limit.

    The child limits itself too; this is for systems without such limits and for a child gone astray.
    """
    deadline = time.monotonic() + _START_SECONDS + seconds
    to_send: bytes | None = job
    while True:
        try:
            return child.communicate(to_send, timeout=0.05)[0]
        except subprocess.TimeoutExpired:
            to_send = None  # communicate keeps what is left to send
        if time.monotonic() > deadline:
            raise BadTokenizer(f"the chat template was stopped after {_START_SECONDS + seconds} s")
        if _resident_bytes(child.pid) > memory_bytes:
            raise BadTokenizer(f"the chat template was stopped at {memory_bytes >> 20} MB of memory")


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _text_of(output: bytes, status: int, seconds: int) -> str:
    if status == _TIMED_OUT or (status < 0 and not output):
        how = f"after {seconds} s" if status == _TIMED_OUT else f"by the system (signal {-status})"
        raise BadTokenizer(f"the chat template was stopped {how}; another template or model is needed")
    try:
        answer = json.loads(output)
    except ValueError:
        raise BadTokenizer(f"the chat template broke its renderer (status {status})") from None
    if "refused" in answer:
        raise TemplateRefused(f"the chat template refuses these messages: {_printable(answer['refused'])}")
    if "failed" in answer:
        raise BadTokenizer(f"the chat template cannot be rendered: {_printable(answer['failed'])}")
    return str(answer["text"])


def _printable(words: str) -> str:
    """A template's own words, without what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in words)
