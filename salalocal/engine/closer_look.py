"""What an answer about long documents is read from: the documents, and where the model asks for it what stood out in
them once more.

A small model finds the right block among many thousands and may still be distracted, when it answers, by the others
that it reads with it. So the sentences that its attention went to while it read the question are read again, alone, in
the order in which they stand in the documents, and the question is answered from those. A model asks for it in its
generation_config.json: {"salalocal": {"closer_look_tokens": 1024}}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from salalocal.documents import Document
from salalocal.engine.events import Done
from salalocal.engine.session import Session
from salalocal.errors import BadConfig
from salalocal.fields import read_json_object
from salalocal.tokenizer import Prompt

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
