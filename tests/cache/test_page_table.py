"""Pages shared copy-on-write, held against a model that gives every session its own list of tokens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salalocal.cache.page_table import PagePool, PageTable

BLOCK = 4


class Desk:
    """Sessions over one pool: what every page holds, and what every session should read."""

    def __init__(self) -> None:
        self.pool = PagePool()
        self.content: dict[tuple[int, int], int] = {}
        self.tables = [PageTable(self.pool, BLOCK)]
        self.tokens: list[list[int]] = [[]]
        self.next_token = 0

    def copy_page(self, source: int, target: int) -> None:
        for offset in range(BLOCK):
            if (source, offset) in self.content:
                self.content[target, offset] = self.content[source, offset]

    def append(self, session: int, count: int) -> None:
        table, tokens = self.tables[session], self.tokens[session]
        before = self.pool.size_after(table.lacking(len(tokens), len(tokens) + count))
        table.extend(len(tokens), len(tokens) + count, self.copy_page)
        assert self.pool.size == before, "lacking and size_after foretell what extend takes"
        for _ in range(count):
            position = len(tokens)
            self.content[table.pages[position // BLOCK], position % BLOCK] = self.next_token
            tokens.append(self.next_token)
            self.next_token += 1

    def truncate(self, session: int, length: int) -> None:
        self.tables[session].truncate(length)
        del self.tokens[session][length:]

    def fork(self, session: int) -> None:
        self.tables.append(self.tables[session].fork())
        self.tokens.append(list(self.tokens[session]))

    def drop(self, session: int) -> None:
        del self.tables[session], self.tokens[session]

    def check(self) -> None:
        for table, tokens in zip(self.tables, self.tokens, strict=True):
            assert len(table.pages) == -(-len(tokens) // BLOCK)
            read = [self.content[table.pages[p // BLOCK], p % BLOCK] for p in range(len(tokens))]
            assert read == tokens
        used = {page for table in self.tables for page in table.pages}
        users = [sum(page in table.pages for table in self.tables) for page in range(self.pool.size)]
        assert users == self.pool._users
        assert sorted(self.pool._free) == sorted(set(range(self.pool.size)) - used)


@given(st.lists(st.tuples(st.sampled_from(["append", "append", "truncate", "fork", "drop"]), st.integers(0, 1 << 30))))
def test_every_session_reads_its_own_tokens(steps: list[tuple[str, int]]) -> None:
    desk = Desk()
    for name, seed in steps:
        dice = random.Random(seed)
        session = dice.randrange(len(desk.tables))
        if name == "append":
            desk.append(session, dice.randrange(1, 11))
        elif name == "truncate":
            desk.truncate(session, dice.randrange(len(desk.tokens[session]) + 1))
        elif name == "fork" and len(desk.tables) < 5:
            desk.fork(session)
        elif name == "drop" and len(desk.tables) > 1:
            desk.drop(session)
        desk.check()


def test_a_dropped_fork_gives_its_pages_back() -> None:
    desk = Desk()
    desk.append(0, 10)
    desk.fork(0)
    desk.append(1, 10)
    size = desk.pool.size
    desk.drop(1)
    desk.check()
    desk.append(0, 9)
    assert desk.pool.size == size, "pages of the dropped fork are used again"


def test_only_a_begun_and_shared_block_is_copied() -> None:
    desk = Desk()
    desk.append(0, 8)
    desk.fork(0)
    copies: list[tuple[int, int]] = []
    desk.tables[1].extend(8, 9, lambda *pair: copies.append(pair))
    assert copies == [], "the last block was full"
    desk.tables[0].extend(8, 10, lambda *pair: copies.append(pair))
    other = desk.tables[0].fork()
    desk.tables[0].extend(10, 11, lambda *pair: copies.append(pair))
    assert copies == [(other.pages[2], desk.tables[0].pages[2])]


def test_a_copy_that_fails_leaves_the_table_as_it_was() -> None:
    desk = Desk()
    desk.append(0, 6)
    desk.fork(0)
    pages = list(desk.tables[1].pages)

    def fail(*_: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        desk.tables[1].extend(6, 7, fail)
    assert desk.tables[1].pages == pages
    desk.check()
    desk.append(1, 3)
    desk.check()
