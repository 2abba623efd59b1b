"""Turns ids into text as they arrive, never giving out half a character.

Knows bytes per token and UTF-8; knows no model.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence


class TextStream:
    """Joins the texts of ids pushed one at a time.

    The concatenation of everything that `push` and `flush` return equals `Tokenizer.decode` of the same
    ids. A character that is spread over several tokens comes out with its last one; bytes that are no
    UTF-8 come out as U+FFFD as soon as that is certain.
    """

    def __init__(self, token_bytes: Sequence[bytes], skipped: Collection[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: "" while a character is unfinished, or for a special id."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(bytes_of(self._token_bytes, token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ""."""
        return self._decoder.decode(b"", final=True)


def bytes_of(token_bytes: Sequence[bytes], token_id: int) -> bytes:
    """The bytes of one id; U+FFFD for an id without a token (models pad their vocabulary)."""
    return token_bytes[token_id] if 0 <= token_id < len(token_bytes) else "\ufffd".encode()
