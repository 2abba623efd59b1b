"""What callers hand over as token ids, checked. Knows no session."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from salalocal.errors import ContextTooLong, InvalidRequest


def checked_ids(
    token_ids: Sequence[int], vocab: int, held: int, limit: int, chunk_size: int | None, final_length: int | None
) -> list[int]:
    """The ids as plain integers.

    Raises:
        InvalidRequest: none, one that is no integer below `vocab`, chunk_size < 1, or a final_length that is shorter
            than the `held` tokens with these.
        ContextTooLong: as `check_length`, of `limit`.
    """
    try:
        ids = [operator.index(token) for token in token_ids]
    except TypeError as error:
        raise InvalidRequest(f"token_ids must hold integers only ({error})") from error
    if not ids:
        raise InvalidRequest("token_ids is empty; at least one token is needed")
    if min(ids) < 0 or max(ids) >= vocab:
        raise InvalidRequest(f"token_ids holds an id outside 0 to {vocab - 1}")
    if chunk_size is not None and chunk_size < 1:
        raise InvalidRequest(f"chunk_size is {chunk_size}; at least 1 is needed")
    stop = held + len(ids)
    if final_length is not None and final_length < stop:
        raise InvalidRequest(f"final_length is {final_length:,}, but the session reaches {stop:,} tokens")
    check_length(max(stop, final_length or 0), limit)
    return ids


def check_length(needed: int, limit: int) -> None:
    """Raises ContextTooLong if a session of up to `limit` tokens cannot become `needed` tokens long."""
    if needed > limit:
        raise ContextTooLong(
            f"{needed:,} tokens are asked for and {limit:,} fit; leave out at least {needed - limit:,}",
            needed_tokens=needed,
            limit_tokens=limit,
        )
