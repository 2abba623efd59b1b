"""What `Engine.generate` and `Engine.chat` yield, besides `Progress`. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salalocal.evidence import QuoteMatch, ReadPassage, answered_in

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Token:
    """One generated token; `text` is "" while a character or a possible stop text is incomplete.

    Text still held back when the answer ends comes in one more event, which repeats the last id.
    """

    id: int
    text: str


@dataclass(frozen=True)
class Evidence:
    """What the answer stands on.

    Attributes:
        quotes: where its quotes stand in the documents, in the order of the answer.
        passages: the sentences that the attention layers read for it, those with the most attention first.
    """

    quotes: tuple[QuoteMatch, ...]
    passages: tuple[ReadPassage, ...] = ()

    def place_of(self, answer: str) -> ReadPassage | None:
        """The passage to show as the place of an `answer` that quotes nothing; None where quotes have their own places,
        or where no passage is sure enough (see `answered_in`)."""
        return None if self.quotes else answered_in(answer, self.passages)


@dataclass(frozen=True)
class Usage:
    """Tokens and seconds of one answer.

    Attributes:
        prompt_tokens: all of the prompt.
        reused_tokens: of those, already read before this call.
        completion_tokens: generated, the end mark not counted.
        prefill_seconds, decode_seconds: reading the rest of the prompt, and generating.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Done:
    """The answer has ended: at the model's end mark or a stop text, at a length limit, or cancelled."""

    usage: Usage
    finish_reason: FinishReason
    reused_tokens: int
