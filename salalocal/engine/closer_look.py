"""What an answer about long documents is read from: the documents, and where the model asks for it what stood out in
them once more.

A small model finds the right block among many thousands and may still be distracted, when it answers, by the others
that it reads with it. So the sentences that its attention went to while it read the question are read again, alone, in
the order in which they stand in the documents, and the question is answered from those. A model asks for it in its
generation_config.json: {"salalocal": {"closer_look_tokens": 1024}}.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from salalocal.config import ModelConfig
from salalocal.documents import Document
from salalocal.engine.events import Done
from salalocal.engine.generate import read_prompt
from salalocal.engine.progress import Progress
from salalocal.engine.session import Session
from salalocal.engine.tally import AttentionTally
from salalocal.errors import BadConfig
from salalocal.evidence import excerpts
from salalocal.fields import read_json_object
from salalocal.tokenizer import Message, Prompt, Tokenizer

MOST_TOKENS = 1 << 16
TIMES_AS_LONG = 8
"""Shorter texts than so many times what is read again are answered from as they are."""
_FILE = "generation_config.json"


@dataclass(frozen=True)
class Source:
    """What is answered from.

    Attributes:
        session: that reads the prompt.
        prompt: as it is read.
        documents: those in it.
        before: of the whole documents' prompt, tokens in all and reused, and seconds of reading; None without a closer
            look.
    """

    session: Session
    prompt: Prompt
    documents: Sequence[Document]
    before: tuple[int, int, float] | None = None

    def done(self, event: Done) -> Done:
        """The end of the answer, with the tokens and seconds of the whole documents' prompt."""
        if self.before is None:
            return event
        tokens, reused, seconds = self.before
        usage = replace(
            event.usage,
            prompt_tokens=tokens,
            reused_tokens=reused,
            prefill_seconds=seconds + event.usage.prefill_seconds,
        )
        return replace(event, usage=usage, reused_tokens=reused)


@dataclass(frozen=True)
class CloserLook:
    """Finds what to answer from.

    Attributes:
        tokens: to be read again, at most; 0: nothing is.
        config: of the model.
        tokenizer: the model's.
        empty_session: gives the session that reads them.
    """

    tokens: int
    config: ModelConfig
    tokenizer: Tokenizer
    empty_session: Callable[[], Session]

    def is_due(self, prompt: Prompt) -> bool:
        """Where the model asks for it, of texts that are read sparsely and are many times as long as what it takes."""
        sparse = self.config.sparse
        if not self.tokens or sparse is None:
            return False
        return len(prompt.ids) >= max(sparse.dense_len, TIMES_AS_LONG * self.tokens)

    def source(
        self,
        whole: Source,
        messages: Sequence[Message],
        checkpoints_at: Collection[int],
        cancel: threading.Event | None,
    ) -> Generator[Progress, None, Source]:
        """Reads the whole prompt, and says what to answer from: what its last token looked at, in a prompt of its own.

        Without attention to any sentence that is the whole prompt. Errors as for `generate`.
        """
        session, prompt, started = whole.session, whole.prompt, perf_counter()
        tally = AttentionTally(session, self.config.sparse_layers, prompt.stable_tokens)
        # What was read before has told its attention to nobody.
        session.keep_common(prompt.ids[:-1])
        with tally.watching():
            reused = yield from read_prompt(session, prompt.ids, checkpoints_at, cancel)
        tally.add()
        files = self.tokenizer.document_tokens(whole.documents, prompt.documents_at)
        found = excerpts(tally.mass(), files, self.tokens)
        if found is None:
            return whole
        close = self.empty_session()
        short = self.tokenizer.encode_prompt(messages, [found])
        return Source(close, short, [found], (len(prompt.ids), reused, perf_counter() - started))


def closer_look_tokens(folder: Path) -> int:
    """How many tokens of stretches the model in `folder` wants to look at again; 0 for no closer look.

    Raises:
        BadConfig: the field is no number of tokens.
    """
    path = folder / _FILE
    ours = read_json_object(path).get("salalocal", {}) if path.is_file() else {}
    tokens = ours.get("closer_look_tokens", 0) if isinstance(ours, dict) else None
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= MOST_TOKENS:
        raise BadConfig(f"{path}: salalocal.closer_look_tokens must be a whole number from 0 to {MOST_TOKENS:,}")
    return tokens
