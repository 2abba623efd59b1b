"""Inputs for sparse attention in the shapes that its GPU kernel takes. Knows neither kernel nor reference.

The same seeds give the same numbers in every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numbers_of import random
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """`tokens` queries from position `first` on, each reading at most `picks` blocks of `block` tokens."""

    group: int
    dim: int
    kv_heads: int
    block: int
    first: int
    tokens: int
    picks: int
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        context = f"{self.tokens} tokens from {self.first}, {self.picks} blocks of {self.block}"
        return f"{self.kv_heads} x {self.group} heads of {self.dim}, {context}, {kind}"

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    def inputs(self, rest: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, pages, page table and blocks, with strides as the model and the cache hand them over.

        `rest` fills the pages of other sessions and what lies behind the last token.
        """
        length = self.first + self.tokens
        count = -(-length // self.block)
        keys_and_values = random(length, self.kv_heads, 2, self.dim, dtype=self.dtype, seed=2)
        table = torch.randperm(count + 3, generator=torch.Generator().manual_seed(length))[:count]
        # The pages of one head are adjacent, as in the cache.
        stored = torch.full((self.kv_heads, 2, count + 3, self.block, self.dim), rest, dtype=self.dtype)
        pages = stored.permute(2, 0, 1, 3, 4)
        for token in range(length):
            pages[table[token // self.block], :, :, token % self.block] = keys_and_values[token]
        # Rows of a wider product, and selections cut from those of more queries.
        q = random(self.tokens, self.kv_heads * self.group + 2, self.dim, dtype=self.dtype, seed=1)[:, 1:-1]
        blocks = torch.full((self.kv_heads, self.tokens + 2, self.picks), -1, dtype=torch.int32)[:, 1:-1]
        generator = torch.Generator().manual_seed(length + self.picks)
        for rows in blocks:
            for t, row in enumerate(rows):
                own = (self.first + t) // self.block
                wanted = int(torch.randint(0, self.picks, (), generator=generator))
                others = torch.randperm(own, generator=generator)[:wanted]
                chosen = sorted([*others.tolist(), own])
                row[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
        return q, pages, table, blocks


# No bfloat16: the interpreter multiplies its bits as if they were integers.
CASES = (
    Case(group=1, dim=64, kv_heads=2, block=16, first=0, tokens=1, picks=1),
    Case(group=1, dim=128, kv_heads=3, block=16, first=0, tokens=17, picks=2),
    Case(group=8, dim=64, kv_heads=1, block=64, first=130, tokens=3, picks=3),
    Case(group=8, dim=64, kv_heads=2, block=16, first=63, tokens=7, picks=5),
    Case(group=8, dim=128, kv_heads=2, block=32, first=95, tokens=5, picks=4),
    Case(group=16, dim=128, kv_heads=2, block=64, first=191, tokens=2, picks=4),
    Case(group=16, dim=64, kv_heads=1, block=16, first=15, tokens=9, picks=3),
    Case(group=3, dim=64, kv_heads=2, block=16, first=40, tokens=5, picks=7),
    Case(group=16, dim=128, kv_heads=1, block=16, first=33, tokens=3, picks=3, dtype=torch.float64),
)
NAN = math.nan
