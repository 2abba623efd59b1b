"""Cuts a prompt into chunks. Knows no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def chunk_edges(start: int, stop: int, chunk_size: int, checkpoints_at: Iterable[int] = ()) -> list[int]:
    """Positions after which the work pauses: every `chunk_size` tokens from `start`, and at every checkpoint.

    A checkpoint inside a chunk ends it there; the next chunk begins at the checkpoint.

    Args:
        start, stop: the tokens to read, [start, stop).
        chunk_size: tokens per chunk, at least 1.
        checkpoints_at: absolute positions; those outside (start, stop) make no edge.

    Returns:
        Ascending edges; the last is `stop`. Empty where nothing is to be read.
    """
    edges = []
    stops = sorted({position for position in checkpoints_at if start < position < stop} | {stop})
    at = start
    for limit in stops:
        while at < limit:
            at = min(at + chunk_size, limit)
            edges.append(at)
    return edges


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common from the start."""
    shorter = min(len(one), len(other))
    # Compared in strips: a million ids take milliseconds, and the strip that differs is searched alone.
    strip = 4096
    at = 0
    while at < shorter and one[at : at + strip] == other[at : at + strip]:
        at += strip
    at = min(at, shorter)
    while at < shorter and one[at] == other[at]:
        at += 1
    return at


def thin(positions: Sequence[int], keep: int) -> set[int]:
    """Which of ascending `positions` to drop so that `keep` are left, spread as evenly as they were.

    Drops the one whose neighbours are closest to each other, again and again; first and last stay.
    """
    left, dropped = list(positions), set()
    while len(left) > max(keep, 2):
        gaps = [left[index + 1] - left[index - 1] for index in range(1, len(left) - 1)]
        dropped.add(left.pop(1 + gaps.index(min(gaps))))
    return dropped
