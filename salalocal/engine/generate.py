"""One answer: reuse what was read, prefill the rest, then one token at a time. Knows ids and a text stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from time import perf_counter
from typing import Protocol

from salalocal.engine.events import Done, FinishReason, Token, Usage
from salalocal.engine.progress import Progress
from salalocal.engine.sampling import Sampler, Sampling
from salalocal.engine.session import Session
from salalocal.errors import InvalidRequest


class Stream(Protocol):
    """Turns ids into text as they come."""

    def push(self, token_id: int) -> str:
        """Text completed by this id."""

    def flush(self) -> str:
        """What was held back."""


def generate(
    session: Session,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    eos_ids: Collection[int],
    make_stream: Callable[[], Stream],
    checkpoints_at: Collection[int] = (),
    cancel: threading.Event | None = None,
) -> Iterator[Progress | Token | Done]:
    """Makes the session hold exactly `ids`, then generates.

    What the session already holds of `ids` is not read again. Cancelling during the reading raises `Cancelled`;
    cancelling during the answer ends it with `Done`.

    Args:
        session: any session; what it holds beyond the common beginning is forgotten.
        ids: the whole prompt, at least one token.
        sampling: how tokens are chosen.
        eos_ids: end the answer.
        make_stream: text stream of this answer.
        checkpoints_at: positions of the prompt at which to keep checkpoints; its end always is one.
        cancel: looked at before every chunk and every token.

    Raises:
        InvalidRequest, ContextTooLong: as `Session.prefill`. Cancelled: while reading.
    """
    started = perf_counter()
    reused = yield from read_prompt(session, ids, checkpoints_at, cancel)
    read_until = perf_counter()
    answer = _Answer(sampling, eos_ids, make_stream())
    while (token := answer.next(session, cancel)) is not None:
        yield token
    usage = Usage(
        prompt_tokens=len(ids),
        reused_tokens=reused,
        completion_tokens=answer.count,
        prefill_seconds=read_until - started,
        decode_seconds=perf_counter() - read_until,
    )
    yield Done(usage, answer.finish_reason, reused)


def read_prompt(
    session: Session, ids: Sequence[int], checkpoints_at: Collection[int], cancel: threading.Event | None
) -> Generator[Progress, None, int]:
    """Makes the session hold exactly `ids`, with a checkpoint at their end; returns how many it held before.

    Errors as for `generate`.
    """
    if not len(ids):
        raise InvalidRequest("the prompt is empty; at least one token is needed")
    session.check_fits(len(ids))
    reused = session.keep_common(ids)
    if reused < len(ids):
        yield from session.read(ids[reused:], checkpoints_at=checkpoints_at, cancel=cancel)
    session.checkpoint()
    return reused


class _Answer:
    """The tokens of one answer, and why it ended."""

    def __init__(self, sampling: Sampling, eos_ids: Collection[int], stream: Stream) -> None:
        self.count = 0
        self.finish_reason: FinishReason = "stop"
        self._sampling = sampling
        self._sampler = Sampler(sampling)
        self._eos_ids = eos_ids
        self._stream = stream
        self._held = ""
        self._last: int | None = None
        self._is_over = False

    def next(self, session: Session, cancel: threading.Event | None) -> Token | None:
        """The next token with the text it completes; None once the answer is over and all text is out."""
        if self._is_over:
            return None
        if cancel is not None and cancel.is_set():
            return self._end("cancelled")
        if self.count >= self._sampling.max_tokens:
            return self._end("length")
        if self._last is None:
            assert session.logits is not None
            token = self._sampler(session.logits)
        elif session.length >= session.max_tokens:
            return self._end("length")
        else:
            token = session.step_and_choose(self._last, self._sampler)
        if token in self._eos_ids:
            return self._end("stop")
        self._last = token
        self.count += 1
        self._held += self._stream.push(token)
        found = [at for stop in self._sampling.stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._is_over = True
            return Token(token, self._held[: min(found)])
        return Token(token, self._release())

    def _release(self) -> str:
        """Text that can no longer become part of a stop text."""
        keep = max((_overlap(self._held, stop) for stop in self._sampling.stop), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def _end(self, reason: FinishReason) -> Token | None:
        """Lets out held-back text, if there is any, under the id of the last token."""
        self.finish_reason = reason
        self._is_over = True
        rest = self._held + self._stream.flush()
        self._held = ""
        return Token(self._last, rest) if rest and self._last is not None else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
