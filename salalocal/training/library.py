"""A million tokens beside a training sequence: blocks of earlier batches, of which every question reads the best.

A text of that length has thousands of blocks that look like an answer, and attention has to tell them apart from the
one that is. A batch holds too few of them; so the attention of the token before an answer reads, besides its own
sequence, what the same layer would select from the documents of the batches before. Their keys and values are as old as
those batches and are not learnt from, as in He et al. 2020 (MoCo) and Wu et al. 2022 (Memorizing Transformers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from salalocal.training.compressed import BLOCK, STRIDE, pooled_keys

_FAR = -1e30
_TOUCHING = BLOCK // STRIDE + 1
"""Compressed keys that touch a block."""
ADDED_SHARE = 0.5
"""Of the blocks of a batch so many take the place of the oldest ones."""


@dataclass(frozen=True)
class Asked:
    """The tokens of a batch that read the library.

    positions: [B, Q] int64, -1 where there is none. is_open: [B] bool, whether the sequence's questions read it.
    """

    positions: Tensor
    is_open: Tensor


class Library:
    """Blocks of earlier batches, as one layer's keys and values.

    Args:
        blocks: how many it holds.
        picks: how many a token reads.
        kv_heads, dim: of the layer.
        dtype, device: of keys and values.
    """

    def __init__(
        self, blocks: int, picks: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._picks = picks
        self._pages = torch.zeros(kv_heads, blocks, 2, BLOCK, dim, dtype=dtype, device=device)
        self._keys = torch.zeros(kv_heads, blocks * _TOUCHING, dim, dtype=dtype, device=device)
        self._is_there = torch.zeros(blocks, dtype=torch.bool, device=device)
        self._next = 0

    @torch.no_grad()
    def add(self, k: Tensor, v: Tensor, document_end: Tensor) -> None:
        """Takes in drawn blocks of the documents of a batch, k and v [B, Hkv, T, d]; waits for nothing."""
        batch, kv_heads, tokens, dim = k.shape
        blocks = tokens // BLOCK
        ends = torch.arange(1, blocks + 1, device=k.device) * BLOCK
        is_document = (ends <= document_end[:, None]).flatten()
        count = min(int(batch * blocks * ADDED_SHARE), len(self._is_there))
        drawn = torch.topk(is_document + torch.rand(batch * blocks, device=k.device) * 0.5, count).indices
        places = (torch.arange(count, device=k.device) + self._next) % len(self._is_there)
        self._next = (self._next + count) % len(self._is_there)
        both = torch.stack([k, v], 2).view(batch, kv_heads, 2, blocks, BLOCK, dim)
        self._pages[:, places] = both.permute(1, 0, 3, 2, 4, 5).flatten(1, 2)[:, drawn].to(self._pages.dtype)
        fine = pooled_keys(k, STRIDE)
        touching = torch.cat([fine[:, :, :1], fine, fine[:, :, -1:]], 2).unfold(2, _TOUCHING, BLOCK // STRIDE)
        keys = touching.permute(1, 0, 2, 4, 3).flatten(1, 2)[:, drawn]
        self._keys.view(kv_heads, -1, _TOUCHING, dim)[:, places] = keys.to(self._keys.dtype)
        self._is_there[places] = is_document[drawn]

    @torch.no_grad()
    def _select(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The best blocks [B, Hkv, Q, picks] for q [B, Hkv, G, Q, d], and which of them are there."""
        batch, kv_heads, group, asked, dim = q.shape
        rows = q.transpose(0, 1).reshape(kv_heads, -1, dim)
        logits = torch.matmul(rows, self._keys.transpose(1, 2)) * dim**-0.5
        best = logits.view(kv_heads, batch, group, asked, -1, _TOUCHING).amax(-1).float()
        best = best.masked_fill(~self._is_there, _FAR)
        shares = torch.logsumexp(best - torch.logsumexp(best, -1, keepdim=True), 2)
        top = torch.topk(shares.masked_fill(~self._is_there, _FAR), min(self._picks, shares.shape[-1])).indices
        return top.transpose(0, 1), self._is_there[top].transpose(0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, asked: Asked) -> Tensor:
        """Attention [B, H, Q, d] of the asked tokens to their own sequence up to themselves and to the library.

        q [B, H, T, d], k and v [B, Hkv, T, d]. What stands for a position of -1 means nothing.
        """
        batch, heads, tokens, dim = q.shape
        kv_heads, count = k.shape[1], asked.positions.shape[1]
        at = asked.positions.clamp(min=0)
        asking = q.gather(2, at[:, None, :, None].expand(batch, heads, count, dim))
        asking = asking.view(batch, kv_heads, heads // kv_heads, count, dim)
        blocks, is_there = self._select(asking)
        head = torch.arange(kv_heads, device=k.device)[None, :, None, None]
        pages = self._pages[head, blocks]
        their_k, their_v = (pages[:, :, :, :, side].flatten(3, 4) for side in (0, 1))
        is_read = (is_there & asked.is_open[:, None, None, None]).repeat_interleave(BLOCK, -1)
        own = torch.einsum("bkgqd,bktd->bkgqt", asking, k).float() * dim**-0.5
        own = own.masked_fill(torch.arange(tokens, device=k.device) > at[:, None, None, :, None], _FAR)
        theirs = torch.einsum("bkgqd,bkqnd->bkgqn", asking, their_k).float() * dim**-0.5
        theirs = theirs.masked_fill(~is_read[:, :, None], _FAR)
        weights = F.softmax(torch.cat([own, theirs], -1), -1).to(v.dtype)
        read = torch.einsum("bkgqt,bktd->bkgqd", weights[..., :tokens], v)
        read = read + torch.einsum("bkgqn,bkqnd->bkgqd", weights[..., tokens:], their_v)
        return read.reshape(batch, heads, count, dim)


def replace_asked(mixed: Tensor, read: Tensor, asked: Asked) -> Tensor:
    """mixed [B, H, T, d] with `read` [B, H, Q, d] in place of the asked tokens."""
    index = asked.positions.clamp(min=0)[:, None, :, None].expand_as(read)
    is_asked = (asked.positions >= 0)[:, None, :, None]
    return mixed.scatter(2, index, torch.where(is_asked, read.to(mixed.dtype), mixed.gather(2, index)))
