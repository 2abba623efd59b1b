"""Which page holds which block, for sessions that share pages copy-on-write. Knows no torch and no data.

A page holds one block of tokens of every attention layer. `PagePool` counts who uses each page; a `PageTable` is one
session's list of pages in token order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

import numpy as np


class PagePool:
    """Hands out page numbers and counts their users; free ones from the lowest on, so that contexts lie in rows."""

    def __init__(self) -> None:
        self._users: list[int] = []
        self._free: list[int] = []

    @property
    def size(self) -> int:
        """Pages ever handed out; storage needs this many."""
        return len(self._users)

    @property
    def free(self) -> int:
        """Pages handed out before and given back."""
        return len(self._free)

    def size_after(self, pages: int) -> int:
        """What `size` will be once `pages` more are handed out."""
        return len(self._users) + max(0, pages - len(self._free))

    def allocate(self) -> int:
        """A page with one user."""
        if self._free:
            page = heapq.heappop(self._free)
            self._users[page] = 1
            return page
        self._users.append(1)
        return len(self._users) - 1

    def share(self, page: int) -> None:
        """One more user of `page`."""
        assert self._users[page] > 0
        self._users[page] += 1

    def release(self, page: int) -> None:
        """One user less; without users the page is free."""
        assert self._users[page] > 0
        self._users[page] -= 1
        if not self._users[page]:
            heapq.heappush(self._free, page)

    def is_shared(self, page: int) -> bool:
        """More than one session uses it, so none may write."""
        return self._users[page] > 1


class PageTable:
    """One session's pages in token order.

    Args:
        pool: where pages come from.
        block_size: tokens per page.
        pages: pages already counted for this table; it takes the list over.
    """

    def __init__(self, pool: PagePool, block_size: int, pages: list[int] | None = None) -> None:
        self._pool = pool
        self._block_size = block_size
        self.pages: list[int] = pages or []

    def lacking(self, length: int, new_length: int) -> int:
        """Pages that `extend` would take from the pool."""
        borrowed = self._borrowed(length)
        return max(0, -(-new_length // self._block_size) - len(self.pages)) + (borrowed is not None)

    def extend(self, length: int, new_length: int, copy_page: Callable[[int, int], None]) -> None:
        """Makes room for tokens [length, new_length), in pages that nobody else writes.

        Args:
            length: tokens this session holds.
            new_length: tokens it will hold.
            copy_page: called with (from, to) where the last block, begun by this session, was shared; the table
                changes only once it has returned.
        """
        borrowed = self._borrowed(length)
        if borrowed is not None:
            own = self._pool.allocate()
            try:
                copy_page(borrowed, own)
            except BaseException:
                self._pool.release(own)
                raise
            self.pages[length // self._block_size] = own
            self._pool.release(borrowed)
        while len(self.pages) * self._block_size < new_length:
            self.pages.append(self._pool.allocate())

    def truncate(self, length: int) -> None:
        """Gives back every page that holds no token below `length`."""
        keep = -(-length // self._block_size)
        for page in self.pages[keep:]:
            self._pool.release(page)
        del self.pages[keep:]

    def fork(self) -> PageTable:
        """A second table over the same pages."""
        for page in self.pages:
            self._pool.share(page)
        return PageTable(self._pool, self._block_size, list(self.pages))

    def _borrowed(self, length: int) -> int | None:
        """The page of the last block, if that block is begun and another session reads the page."""
        if not length % self._block_size:
            return None
        page = self.pages[length // self._block_size]
        return page if self._pool.is_shared(page) else None

    def __del__(self) -> None:
        # Sessions are dropped, not closed; what a dropped one used goes to the others of its pool.
        self.truncate(0)


def page_runs(numbers: np.ndarray, wanted: np.ndarray, per_segment: int, gap: int) -> Iterator[tuple[int, int]]:
    """Cuts what is wanted of a list of pages into runs that lie in a row within a segment of memory.

    Args:
        numbers: [n] int64, the page of each place.
        wanted: [w] int64, ascending places.
        per_segment: pages of a segment; page p is in segment p // per_segment.
        gap: up to so many places between two wanted ones become part of a run.

    Yields:
        (start, stop) of places, ascending; the pages of a run are numbers[start], numbers[start] + 1, ...; in a gap
        they may be others than `numbers` says.
    """
    if not len(wanted):
        return
    pages, step = numbers[wanted], np.diff(wanted)
    breaks = (step > gap + 1) | (np.diff(pages) != step) | (np.diff(pages // per_segment) != 0)
    edges = np.flatnonzero(breaks) + 1
    for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(wanted)], strict=True):
        yield int(wanted[first]), int(wanted[last - 1]) + 1
