"""The turns of one conversation: their order, which of them wait, and what becomes of a refusal.

Knows no engine and no lock: whoever shares a conversation between threads guards it.
"""

from __future__ import annotations

from dataclasses import replace

import salalocal
from salalocal_ui.notices import DID_NOT_FIT
from salalocal_ui.state import Turn, messages_of


class Conversation:
    """Turns in the order in which they were asked. Each has an id, because a later one may already wait."""

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._next_id = 1

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, the waiting ones last."""
        return tuple(self._turns.values())

    def ask(self, question: str) -> int:
        """Append a turn that waits; returns its id."""
        turn_id, self._next_id = self._next_id, self._next_id + 1
        self._turns[turn_id] = Turn(question, waiting=True)
        return turn_id

    def change(self, turn_id: int, **changes: object) -> None:
        """Replace fields of a turn; one that was forgotten is left alone."""
        if turn_id in self._turns:
            self._turns[turn_id] = replace(self._turns[turn_id], **changes)  # type: ignore[arg-type]

    def prompt(self, question: str) -> list[salalocal.Message]:
        """What is sent for `question`: the answered turns so far, then itself."""
        return [*messages_of(self.turns), salalocal.Message(role="user", content=question)]

    def forget(self) -> None:
        """Drop what was said. What still waits was asked for the new conversation and stays."""
        self._turns = {turn_id: turn for turn_id, turn in self._turns.items() if turn.waiting}

    def document_gone(self) -> None:
        """A document was taken away: the figures of refusals for length are no longer true."""
        for turn_id, turn in self._turns.items():
            if turn.too_long:
                self._turns[turn_id] = replace(turn, too_long=False, notice=DID_NOT_FIT)
