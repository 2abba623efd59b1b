"""A scripted engine with the public shape, for commands that must not wait for a model: words are tokens.

Sessions really hold ids, cancel really stops between chunks and between words, and `chat` really counts what it
reused. `on_word` and `on_chunk` let a test press Ctrl-C in the middle.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import salalocal
from salalocal.errors import Cancelled, ContextTooLong
from salalocal.times import Times

CHUNK = 4


def nothing() -> None:
    """The default hook."""


@dataclass
class ScriptedSession:
    """Holds ids; reads `CHUNK` of them at a time."""

    engine: ScriptedEngine
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids)

    def fork(self) -> ScriptedSession:
        return ScriptedSession(self.engine, list(self.ids))

    def prefill(self, token_ids, *, on_progress=None, cancel=None, **_unused) -> None:
        self.engine.check_fits(self.length + len(token_ids))
        done = 0
        while done < len(token_ids):
            if cancel is not None and cancel.is_set():
                raise Cancelled(self.length)
            self.engine.on_chunk()
            chunk = token_ids[done : done + CHUNK]
            self.ids.extend(chunk)
            done += len(chunk)
            if on_progress is not None:
                on_progress(salalocal.Progress(done, len(token_ids), 100.0, (len(token_ids) - done) / 100, 0, 0))


@dataclass
class ScriptedEngine:
    """`answer`: the words every question gets. `limit`: most tokens a session may hold, `trained`: at which length.
    `times`, `remedy`: what is expected of any prompt, and said of one that does not fit."""

    answer: str = "The harbour was built in 1893."
    limit: int = 100_000
    trained: int = 100_000
    quotes: tuple[salalocal.QuoteMatch, ...] = ()
    passages: tuple[salalocal.ReadPassage, ...] = ()
    on_word: Callable[[], None] = nothing
    on_chunk: Callable[[], None] = nothing
    prompts: list[list[salalocal.Message]] = field(default_factory=list)
    times: Times | None = None
    remedy: str | None = None
    loaded_as: tuple[object, ...] = ()
    samplings: list[salalocal.Sampling] = field(default_factory=list)
    _words: dict[str, int] = field(default_factory=dict)

    def max_context_tokens(self) -> int:
        return self.limit

    def length_note(self, tokens: int) -> str | None:
        return f"{tokens:,} tokens are more than it was trained at" if tokens > self.trained else None

    def expected_times(self, tokens: int) -> Times | None:
        del tokens
        return self.times

    def way_out(self, tokens: int) -> str | None:
        del tokens
        return self.remedy

    def check_fits(self, needed: int) -> None:
        if needed > self.limit:
            raise ContextTooLong(
                f"{needed:,} tokens are asked for and {self.limit:,} fit",
                needed_tokens=needed,
                limit_tokens=self.limit,
            )

    def encode(self, content: object) -> list[int]:
        if isinstance(content, str):
            return [self._words.setdefault(word, len(self._words)) for word in content.split()]
        if isinstance(content, salalocal.Document):
            return self.encode(" ".join(span.text for file in content.files for span in file.spans))
        assert isinstance(content, Sequence), f"cannot encode {type(content).__name__}"
        return [one for document in content for one in self.encode(document)]

    def new_session(self, record_selection: bool = False) -> ScriptedSession:
        del record_selection
        return ScriptedSession(self)

    def chat(
        self,
        session: ScriptedSession,
        messages: Sequence[salalocal.Message],
        documents: Sequence[salalocal.Document],
        sampling: salalocal.Sampling,
        cancel: threading.Event | None = None,
        on_prompt: Callable[[int], None] | None = None,
    ) -> Iterator[object]:
        self.prompts.append(list(messages))
        self.samplings.append(sampling)
        ids = self.encode(list(documents))
        for message in messages:
            ids += self.encode(f"<{message.role}> {message.content}")
        reused = 0
        while reused < min(len(ids), session.length) and ids[reused] == session.ids[reused]:
            reused += 1
        session.ids = session.ids[:reused]
        self.check_fits(len(ids))
        if on_prompt is not None:
            on_prompt(len(ids))
        for start in range(reused, len(ids), CHUNK):
            if cancel is not None and cancel.is_set():
                raise Cancelled(session.length)
            self.on_chunk()
            session.ids += ids[start : start + CHUNK]
            yield salalocal.Progress(len(session.ids) - reused, len(ids) - reused, 100.0, 0.0, 0, 0)
        reason, said = "stop", 0
        for word in self.answer.split(" "):
            if cancel is not None and cancel.is_set():
                reason = "cancelled"
                break
            if said >= sampling.max_tokens:
                reason = "length"
                break
            self.on_word()
            yield salalocal.Token(said, (" " if said else "") + word)
            said += 1
        yield salalocal.Evidence(self.quotes, self.passages)
        yield salalocal.Done(salalocal.Usage(len(ids), reused, said, 0.1, 0.5), reason, reused)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code and the two streams."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict:
        """stdout, which must be one JSON object and nothing else."""
        return json.loads(self.out)

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


Run = Callable[..., Outcome]
