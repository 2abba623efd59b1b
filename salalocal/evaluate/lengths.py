"""Lengths of texts as people write them: "8K", "64K", "1M". K is 1,024 tokens, M is 1,024 K."""

from __future__ import annotations

import re

from salalocal.errors import InvalidRequest

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([KM]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


def parse_lengths(text: str, least: int, most: int) -> tuple[int, ...]:
    """ "8K,64K,1M" -> (8192, 65536, 1048576), in the order given, each once.

    Raises:
        InvalidRequest: nothing there, not a length, or outside `least` to `most` tokens.
    """
    lengths: dict[int, None] = {}
    for part in text.split(","):
        match = _LENGTH.fullmatch(part.strip())
        if match is None:
            raise InvalidRequest(f"{part.strip()!r} is no length; give tokens as in 8K,64K,1M")
        tokens = float(match[1]) * _UNITS[match[2].upper()]
        if not least <= tokens <= most:
            raise InvalidRequest(
                f"the length {part.strip()} is outside {format_length(least)} to {format_length(most)} tokens"
            )
        lengths[int(tokens)] = None
    return tuple(lengths)


def format_length(tokens: int) -> str:
    """8192 -> "8K"; what is no whole number of K is written out."""
    for unit in ("M", "K"):
        if tokens >= _UNITS[unit] and tokens % _UNITS[unit] == 0:
            return f"{tokens // _UNITS[unit]}{unit}"
    return f"{tokens:,}"
