"""Numbers and durations as people read them, and text made safe for HTML. Knows nothing else."""

from __future__ import annotations

import html
import math


def tokens(count: int) -> str:
    """'1 token', '12,345 tokens'."""
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def counted(count: int, one: str, many: str) -> str:
    """'1 file', '3 files'."""
    return f"{count:,} {one if count == 1 else many}"


def time_left(seconds: float) -> str:
    """'12 s left', '3 min 20 s left', '1 h 05 min left'; says so while it is not known yet."""
    if not math.isfinite(seconds) or seconds < 0:
        return "time left not known yet"
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s left"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s left"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min left"


def rate(tokens_per_second: float) -> str:
    """'1,204 tokens/s', '8.3 tokens/s'; empty while it is not known yet."""
    if not math.isfinite(tokens_per_second) or tokens_per_second <= 0:
        return ""
    return f"{tokens_per_second:,.0f} tokens/s" if tokens_per_second >= 100 else f"{tokens_per_second:.1f} tokens/s"


def safe(text: str) -> str:
    """Text for HTML: escaped, and isolated so that a right-to-left name does not turn its neighbours around."""
    return f"<bdi>{html.escape(text)}</bdi>"


def shortened(text: str, characters: int) -> str:
    """One line of at most `characters` characters; a cut is shown as '…'."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def ended(text: str) -> str:
    """The text with a full stop, unless it ends like a sentence already, as a question does."""
    return text if text.endswith((".", "?", "!", "…")) else text + "."


def sentence(text: str) -> str:
    """The text beginning with a capital, unless its first word is a name such as 'notes.md'."""
    first, space, rest = text.partition(" ")
    return first[:1].upper() + first[1:] + space + rest if first.isalpha() else text
