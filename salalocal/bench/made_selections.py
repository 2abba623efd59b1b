"""Made selections for every token of a text of any length, drawn on the device where they are read. Knows no scores.

A query's free picks are slots. Slot j holds a block of its own class: every F-th of those that may be picked freely, F
being how many slots there are, so that no two slots ever hold the same block. From one query to the next a slot keeps
its block or goes on to any other of its class. So a query keeps the share of free picks that is asked for, the others
are drawn uniformly from the visible blocks, and all queries of a table are drawn at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.sparse_config import SparseConfig

# Tables begin at multiples of so many tokens, wherever chunks do: small ones, whose drawing takes little memory, and as
# many as every layer of a chunk reads again.
_TABLE_TOKENS = 1024
_TABLES_KEPT = 18
_NOWHERE = torch.iinfo(torch.int32).max


class MadeSelections:
    """What queries at any position read, the same whatever the chunks and however often it is asked.

    Args:
        config: the model.
        shared: of its free picks, so large a share does a query of a prefill have in common with the one before.
        steps_shared: the same of consecutive decode steps.
        device: where tables are drawn, and stay.
    """

    def __init__(self, config: ModelConfig, shared: float, steps_shared: float, device: torch.device) -> None:
        self._prefill = _Tables(config, shared, device, seed=0)
        self._steps = _Tables(config, steps_shared, device, seed=1 << 32)
        # Where a recorded step finds the selection of its token, which changes between replays.
        self._of_next = self._steps.rows(0, 1).clone()
        self._aimed_at = -1

    def aim(self, position: int) -> None:
        """The next call of one token is the decode step at `position`."""
        self._of_next.copy_(self._steps.rows(position, 1))
        self._aimed_at = position

    def of(self, position: int | Tensor, tokens: int) -> Tensor:
        """int32 [Hkv, tokens, K], ascending, -1 padded, of the tokens from `position` on."""
        if isinstance(position, Tensor) or (tokens == 1 and position == self._aimed_at):
            return self._of_next
        return self._prefill.rows(position, tokens)


class _Tables:
    """Selections by position, drawn a table at a time."""

    def __init__(self, config: ModelConfig, shared: float, device: torch.device, seed: int) -> None:
        assert config.sparse is not None
        self._sparse = config.sparse
        self._kv_heads = config.num_key_value_heads
        self._shared = shared
        self._device = device
        self._seed = seed
        self._drawn: dict[int, Tensor] = {}

    def rows(self, position: int, tokens: int) -> Tensor:
        """int32 [Hkv, tokens, K]; a view where they lie in one table."""
        first, last = position // _TABLE_TOKENS, (position + tokens - 1) // _TABLE_TOKENS
        start = position - first * _TABLE_TOKENS
        tables = [self._table(number) for number in range(first, last + 1)]
        found = tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)
        return found[:, start : start + tokens]

    def _table(self, number: int) -> Tensor:
        if number not in self._drawn:
            generator = torch.Generator(self._device).manual_seed(self._seed + number)
            first = number * _TABLE_TOKENS
            self._drawn[number] = drawn(self._sparse, self._kv_heads, first, _TABLE_TOKENS, self._shared, generator)
            for old in list(self._drawn)[:-_TABLES_KEPT]:
                del self._drawn[old]
        return self._drawn[number]


def drawn(
    sparse: SparseConfig, kv_heads: int, first: int, tokens: int, shared: float, generator: torch.Generator
) -> Tensor:
    """Selections of `tokens` queries in a row.

    A query that sees no more blocks than it may pick reads all of them. Near there a class is small: one of two blocks
    has only the other to go on to, and one of a single block keeps it.

    Args:
        sparse: sizes of the selection.
        kv_heads: that select by themselves.
        first: absolute position of the first query.
        tokens: queries.
        shared: of a query's free picks, so large a share is kept from the query before.
        generator: of the device on which they are drawn.

    Returns:
        int32 [kv_heads, tokens, K], each row ascending, filled with -1 at the end: the initial blocks, the free picks,
        and the window up to the query's own block.
    """
    device, init, local = generator.device, sparse.init_blocks, sparse.local_blocks
    free = sparse.selected_blocks - local - 1 - init
    own = (torch.arange(first, first + tokens, device=device) // sparse.block_size)[:, None]
    slots = torch.arange(free, device=device)
    # Blocks from `init` up to the window, shared out among the slots.
    sizes = ((own - local - init).clamp(min=0) - slots + free - 1) // max(1, free)

    def chance() -> Tensor:
        return torch.rand(kv_heads, tokens, free, device=device, generator=generator)

    is_replaced, ahead = chance() >= shared, chance()
    going_on = is_replaced * (1 + (ahead * (sizes - 1)).long()) * (sizes > 1)
    going_on[:, :1] = (ahead * sizes)[:, :1].long()
    places = going_on.cumsum(1) % sizes.clamp(min=1)
    picked = torch.where(sizes > 0, init + slots + free * places, _NOWHERE)
    window = own + torch.arange(-local, 1, device=device)
    window = torch.where(window >= init, window, _NOWHERE)
    initial = torch.arange(init, device=device)
    initial = torch.where(initial <= own, initial, _NOWHERE)
    both = (part.expand(kv_heads, -1, -1) for part in (initial, window))
    row = torch.cat([*both, picked], dim=-1).int().sort(dim=-1).values
    return row.masked_fill_(row == _NOWHERE, -1)
