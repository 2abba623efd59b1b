"""How one query's attention is shared out among the tokens it reads: for showing what was read."""

from __future__ import annotations

import torch
from torch import Tensor


def token_mass(
    q: Tensor, pages: Tensor, page_table: Tensor, blocks: Tensor, length: int | Tensor, scale: float
) -> Tensor:
    """The softmax weights of the newest token's query over the tokens of its blocks, summed over the heads.

    Args:
        q: [H, D], the token at length - 1.
        pages: [P, Hkv, 2, B, D].
        page_table: [N] int64, the page of each block, or [Hkv, N] where it differs between kv heads.
        blocks: [Hkv, K] int32, -1 padded.
        length: tokens in the cache, this one included; a tensor of one element where only the device knows it.
        scale: factor on q . k.

    Returns:
        float32 [Hkv, K, B], 0 for padding and for tokens not there yet; each kv head's sum is its group size.
    """
    kv_heads, picks = blocks.shape
    block_size, dim = pages.shape[3:]
    wide = torch.promote_types(q.dtype, torch.float32)
    picked = blocks.long()
    of_head = torch.arange(kv_heads, device=q.device)[:, None]
    keys = pages[page_table.expand(kv_heads, -1)[of_head, picked.clamp(min=0)], of_head, 0].to(wide)
    logits = scale * torch.einsum("hgd,hkbd->hgkb", q.view(kv_heads, -1, dim).to(wide), keys)
    tokens = picked[..., None] * block_size + torch.arange(block_size, device=q.device)
    hidden = (picked[..., None] < 0) | (tokens >= length)
    logits.masked_fill_(hidden[:, None], -torch.inf)
    return logits.flatten(2).softmax(-1).sum(1).view(kv_heads, picks, block_size).float()
