"""What happened, as one sentence for the page. Knows errors and finish reasons; knows no desk and no HTML."""

from __future__ import annotations

from collections.abc import Sequence

import salalocal
from salalocal import BadInput, ContextTooLong, SalaError
from salalocal_ui.state import Item, Notice
from salalocal_ui.wording import sentence, tokens

STOPPED = Notice("Stopped. What was read is kept.")
NOT_BEGUN = Notice("Stopped before it began.")
DID_NOT_FIT = Notice("Not answered: it did not fit with the documents there were then. Ask again.")
LARGEST_NAMED = 3


def refusal(error: SalaError, items: Sequence[Item] = ()) -> Notice:
    """An error of ours as a sentence on the page; one for length names the largest of `items`."""
    if isinstance(error, ContextTooLong) and items:
        return does_not_fit(error.needed_tokens, error.limit_tokens, items)
    return Notice(sentence(str(error)), "refused" if isinstance(error, BadInput) else "failed")


def does_not_fit(needed_tokens: int, limit_tokens: int, items: Sequence[Item]) -> Notice:
    """A refusal for length, with how much has to go and the documents that weigh most."""
    largest = sorted(items, key=lambda item: -item.tokens)[:LARGEST_NAMED]
    names = ", ".join(f"{item.name} ({item.tokens:,})" for item in largest)
    text = (
        f"This does not fit: {tokens(needed_tokens)}, and the model holds {limit_tokens:,} with question "
        f"and answer. Take away {needed_tokens - limit_tokens:,} or more; largest: {names}."
    )
    return Notice(text, "refused")


def unforeseen(error: BaseException) -> Notice:
    """An error nobody planned for: its kind and text; the traceback goes to the log."""
    detail = " ".join(str(error).split())[:300]
    return Notice(
        f"Something broke that was not foreseen ({type(error).__name__}: {detail}); the terminal shows where. "
        "What was read before is kept.",
        "failed",
    )


def ending(finish_reason: str, sampling: salalocal.Sampling) -> Notice | None:
    """What to say about how an answer ended, if it did not end by itself."""
    if finish_reason == "cancelled":
        return Notice("Stopped.")
    if finish_reason == "length":
        return Notice(f"The answer was cut at {sampling.max_tokens:,} tokens; ask it to go on.")
    return None
