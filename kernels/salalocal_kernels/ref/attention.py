"""Softmax attention over K/V pages: dense, and over selected blocks. Knows no projections, gates or positions.

Pages are [P, Hkv, 2, B, D]: for each block of B tokens and kv head K then V. Any strides are accepted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from salalocal_kernels.ref.token_mass import token_mass

# Queries of a dense tile; the mask is group * tile x keys.
_DENSE_TILE = 256
# Queries that share one gather of their blocks' union. Neighbours pick mostly the same blocks; a wider tile gathers
# less often but multiplies more masked products.
_SPARSE_TILE = 8


def dense_attention(q: Tensor, pages: Tensor, first_position: int, scale: float) -> Tensor:
    """Causal attention of T queries over everything up to their own token.

    Args:
        q: [T, H, D]; row r is the token at first_position + r.
        pages: [N, Hkv, 2, B, D], the blocks of the context in order; N * B >= first_position + T.
        first_position: absolute position of the first query.
        scale: factor on q . k.

    Returns:
        [T, H, D], dtype of q, softmax statistics in at least float32.
    """
    tokens, _, dim = q.shape
    kv_heads = pages.shape[1]
    keys = pages[:, :, 0].transpose(0, 1).reshape(kv_heads, -1, dim)
    values = pages[:, :, 1].transpose(0, 1).reshape(kv_heads, -1, dim)
    out = torch.empty_like(q)
    for start in range(0, tokens, _DENSE_TILE):
        stop = min(start + _DENSE_TILE, tokens)
        length = first_position + stop
        visible = None
        if stop - start > 1:
            positions = torch.arange(first_position + start, length, device=q.device)
            visible = torch.arange(length, device=q.device) <= positions[:, None]
        out[start:stop] = _grouped_attention(q[start:stop], keys[:, :length], values[:, :length], visible, scale)
    return out


def sparse_attention_prefill(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    blocks: Tensor,
    first_position: int | Tensor,
    scale: float,
    lse: Tensor | None = None,
    out: Tensor | None = None,
    span: tuple[int, int] | None = None,
) -> Tensor:
    """Attention of T queries, each over the tokens t <= its own of its selected blocks.

    Args:
        q: [T, H, D]; row r is the token at first_position + r.
        pages: [P, Hkv, 2, B, D].
        page_table: [N] int64, the page of each block.
        blocks: [Hkv, T, K] int32 from select_blocks, -1 padded; every row holds the query's own block. Blocks after it
            are not read. With `lse` a row may hold some of a query's blocks, or none, and -1 stand anywhere.
        first_position: absolute position of the first query; an int64 tensor of one element where only the device
            knows it (a captured graph), which this definition waits for.
        scale: factor on q . k.
        lse: [T, H], float32 or wider, overwritten where given: the natural logarithm of the sum of exp(scale q . k)
            over the tokens read, -inf where there are none.
        out: [T, H, D], dtype of `lse`: what an earlier call read of other blocks, and `lse` what it gave. Both take in
            what is read now, and `out` is returned.
        span: first and last block (excluded); others are not read. Only with `lse`.

    Returns:
        [T, H, D], dtype of q, softmax statistics in at least float32. With `lse` of its dtype, and 0 where nothing is
        read: what was read of several sets of blocks then adds up, each weighed by exp(lse). Memory is bounded by the
        union of the blocks of a few neighbouring queries.
    """
    if span is not None:
        blocks = torch.where((blocks >= span[0]) & (blocks < span[1]), blocks, -1)
    tables, first = page_table.expand(pages.shape[1], -1), int(first_position)
    if out is None:
        return _sparse_attention(q, pages, tables, blocks, first, scale, lse)
    assert lse is not None
    now = torch.empty_like(lse)
    read = _sparse_attention(q, pages, tables, blocks, first, scale, now)
    # Of two that have read nothing either may go.
    out.lerp_(read, torch.sigmoid(now - lse).nan_to_num_(0.0)[..., None])
    torch.logaddexp(lse, now, out=lse)
    return out


def _sparse_attention(
    q: Tensor, pages: Tensor, tables: Tensor, blocks: Tensor, first_position: int, scale: float, lse: Tensor | None
) -> Tensor:
    """The above with a page table per kv head, [Hkv, N]."""
    tokens, heads, dim = q.shape
    kv_heads, block_size = pages.shape[1], pages.shape[3]
    group = heads // kv_heads
    num_blocks = tables.shape[1]
    offsets = torch.arange(block_size, device=q.device)
    out = torch.empty_like(q, dtype=q.dtype if lse is None else lse.dtype)
    for start in range(0, tokens, _SPARSE_TILE):
        stop = min(start + _SPARSE_TILE, tokens)
        positions = torch.arange(first_position + start, first_position + stop, device=q.device)
        for head in range(kv_heads):
            picked = blocks[head, start:stop].long()
            member = torch.zeros(stop - start, num_blocks + 1, dtype=torch.bool, device=q.device)
            # -1 wraps to the spare last column, which is cut off.
            member.scatter_(1, picked % (num_blocks + 1), True)
            union = member[:, :num_blocks].any(0).nonzero()[:, 0]
            used = tables[head, union]
            tokens_of = union[:, None] * block_size + offsets
            visible = member[:, union, None] & (tokens_of <= positions[:, None, None])
            slice_of_heads = slice(head * group, (head + 1) * group)
            rows = q[start:stop, slice_of_heads]
            keys, values = (pages[used, head, side].reshape(-1, dim) for side in (0, 1))
            if lse is None:
                read = _grouped_attention(rows, keys[None], values[None], visible.flatten(1), scale)
            else:
                read, lse[start:stop, slice_of_heads] = _partial(rows, keys, values, visible.flatten(1), scale, lse)
            out[start:stop, slice_of_heads] = read
    return out


def sparse_attention_decode(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    blocks: Tensor,
    length: int | Tensor,
    scale: float,
    mass: Tensor | None = None,
) -> Tensor:
    """Attention of the newest token over its selected blocks.

    Args:
        q: [H, D], the token at length - 1.
        pages: [P, Hkv, 2, B, D].
        page_table: [N] int64, the page of each block, or [Hkv, N] where it differs between kv heads. Entries of blocks
            that are not read may name any page.
        blocks: [Hkv, K] int32, -1 padded.
        length: tokens in the cache, this one included; may be a tensor as `first_position` above.
        scale: factor on q . k.
        mass: float32 [Hkv, K], overwritten where given: softmax weights summed over the tokens of each block and the
            heads of the group (the sums of `token_mass`), 0 for padding.

    Returns:
        [H, D], dtype of q.
    """
    if mass is not None:
        mass.copy_(token_mass(q, pages, page_table, blocks, length, scale).sum(-1))
    tables = page_table.expand(pages.shape[1], -1)
    return _sparse_attention(q[None], pages, tables, blocks[:, None], int(length) - 1, scale, None)[0]


def _grouped_attention(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, scale: float) -> Tensor:
    """q [T, H, D] over keys and values [Hkv, N, D] where visible [T, N]; heads of a group become extra rows, so no
    key is repeated in memory."""
    tokens, heads, dim = q.shape
    kv_heads = keys.shape[0]
    rows = q.reshape(tokens, kv_heads, -1, dim).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, dim)
    mask = None if visible is None else visible.repeat(heads // kv_heads, 1)
    out = functional.scaled_dot_product_attention(rows, keys[None], values[None], attn_mask=mask, scale=scale)
    return out.reshape(kv_heads, -1, tokens, dim).permute(2, 0, 1, 3).reshape(tokens, heads, dim)


def _partial(
    q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """q [T, G, D] over keys and values [N, D] where visible [T, N], which may be nowhere.

    Returns what was read [T, G, D] and its log-sum-exp [T, G], both in the dtype of `like`.
    """
    logits = (q.to(like.dtype) @ keys.to(like.dtype).T).mul_(scale).masked_fill_(~visible[:, None], -torch.inf)
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp_().masked_fill_(~visible[:, None], 0)
    return weights @ values.to(like.dtype), lse
