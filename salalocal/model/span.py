"""What a layer needs to know about the tokens it is given. Knows no weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A run of new tokens.

    Attributes:
        first_position: absolute position of the first one.
        tokens: how many.
        is_sparse: whether attention layers select blocks; decided on the final length of the whole prompt.
        is_watched: whether attention layers say how the last token's attention is shared out.
    """

    first_position: int
    tokens: int
    is_sparse: bool
    is_watched: bool = False

    @property
    def length(self) -> int:
        """Tokens in the cache once these are read."""
        return self.first_position + self.tokens
