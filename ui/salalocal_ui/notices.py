"""What happened, as one sentence for the page. Knows errors and finish reasons; knows no desk and no HTML."""

from __future__ import annotations

import salalocal
from salalocal import BadInput, SalaError
from salalocal_ui.state import Notice
from salalocal_ui.wording import sentence

STOPPED = Notice("Stopped. What was read is kept.")


def refusal(error: SalaError) -> Notice:
    """An error of ours as a sentence on the page."""
    return Notice(sentence(str(error)), "refused" if isinstance(error, BadInput) else "failed")


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
