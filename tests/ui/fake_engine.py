"""A scripted engine with the public shape: words are tokens, reading takes as long as the test says.

Sessions really hold ids, cancel really stops between chunks, and `chat` really counts what it reused, so the
desk's promises can fail here. Nothing is learned about language.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import salalocal
from salalocal import Cancelled, ContextTooLong, Document, Message


@dataclass
class FakeSession:
    """Holds ids; `engine` gives the pace."""

    engine: FakeEngine
    token_ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.token_ids)

    @property
    def max_tokens(self) -> int:
        return self.engine.limit

    def checkpoint(self) -> None:
        self.engine.checkpoints.append(self.length)

    def keep_common(self, token_ids: Sequence[int]) -> int:
        kept = 0
        while kept < min(len(token_ids), self.length) and token_ids[kept] == self.token_ids[kept]:
            kept += 1
        del self.token_ids[kept:]
        return kept

    def fork(self) -> FakeSession:
        return FakeSession(self.engine, list(self.token_ids))

    def prefill(self, token_ids, *, on_progress=None, cancel=None, **_unused) -> None:
        self.engine.check_fits(self.length + len(token_ids))
        done = 0
        started = time.monotonic()
        while done < len(token_ids):
            if cancel is not None and cancel.is_set():
                raise Cancelled(self.length)
            self.engine.gate()
            chunk = token_ids[done : done + self.engine.chunk]
            self.token_ids.extend(chunk)
            done += len(chunk)
            speed = done / max(time.monotonic() - started, 1e-6)
            if on_progress is not None:
                left = (len(token_ids) - done) / speed
                on_progress(salalocal.Progress(done, len(token_ids), speed, left, 0, 0))


@dataclass
class FakeEngine:
    """`answer`: the words every question gets. `limit`: most tokens a session may hold."""

    answer: str = "The harbour was built in 1893."
    limit: int = 100_000
    trained: int | None = None
    chunk: int = 4
    chunk_seconds: float = 0.0
    quotes: tuple[salalocal.QuoteMatch, ...] = ()
    passages: tuple[salalocal.ReadPassage, ...] = ()
    hold: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    broken: Exception | None = None
    checkpoints: list[int] = field(default_factory=list)
    prompts: list[list[Message]] = field(default_factory=list)
    _words: dict[str, int] = field(default_factory=dict)

    def gate(self) -> None:
        """One chunk or token of work: waits for `hold` where a test wants to look in the middle."""
        self.reached.set()
        if self.hold is not None:
            assert self.hold.wait(20), "the test never let the engine go on"
        if self.chunk_seconds:
            time.sleep(self.chunk_seconds)

    def check_fits(self, needed: int) -> None:
        if needed > self.limit:
            raise ContextTooLong(
                f"{needed:,} tokens do not fit: this model reads at most {self.limit:,}; drop a document",
                needed_tokens=needed,
                limit_tokens=self.limit,
            )

    def max_context_tokens(self) -> int:
        return self.limit

    def length_note(self, tokens: int) -> str | None:
        over = self.trained is not None and tokens > self.trained
        return f"{tokens:,} tokens are more than the {self.trained:,} it was trained at" if over else None

    def encode(self, content: object) -> list[int]:
        if isinstance(content, str):
            return [self._words.setdefault(word, len(self._words)) for word in content.split()]
        if isinstance(content, Document):
            return self.encode(" ".join(span.text for file in content.files for span in file.spans))
        if isinstance(content, Sequence) and content and isinstance(content[0], Document):
            return [id_ for document in content for id_ in self.encode(document)]
        raise TypeError(f"cannot encode {type(content).__name__}")

    def new_session(self, record_selection: bool = False) -> FakeSession:
        del record_selection
        return FakeSession(self)

    def chat(
        self,
        session: FakeSession,
        messages: Sequence[Message],
        documents: Sequence[Document],
        sampling: salalocal.Sampling,
        cancel: threading.Event | None = None,
    ) -> Iterator[object]:
        self.prompts.append(list(messages))
        if self.broken is not None:
            raise self.broken
        ids = [id_ for document in documents for id_ in self.encode(document)]
        for message in messages:
            ids += self.encode(f"<{message.role}> {message.content}")
        self.check_fits(len(ids))
        reused = session.keep_common(ids)
        rest = len(ids) - reused
        session.token_ids += ids[reused:]
        yield salalocal.Progress(rest, rest, 100.0, 0.0, 0, 0)
        reason = "stop"
        words = self.answer.split(" ")
        said = 0
        for word in words:
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            if said >= sampling.max_tokens:
                reason = "length"
                break
            self.gate()
            yield salalocal.Token(said, (" " if said else "") + word)
            said += 1
        yield salalocal.Evidence(self.quotes, self.passages)
        usage = salalocal.Usage(len(ids), reused, said, 0.1, 0.5)
        yield salalocal.Done(usage, reason, reused)
