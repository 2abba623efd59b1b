"""The compressed keys of a sparse layer while training: their scores, which blocks they select, and their loss.

Scores follow the runtime (fine keys scored, coarse keys as normaliser), so the loss ranks what the runtime will rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE = 16
BLOCK = 64
_FAR = -1e30


def pooled_keys(k: Tensor, stride: int) -> Tensor:
    """Means of 2 * stride keys every `stride` of k [B, Hkv, T, d]: [B, Hkv, T / stride - 1, d]."""
    batch, heads, tokens, dim = k.shape
    means = k.reshape(batch, heads, tokens // stride, stride, dim).float().mean(3)
    return (0.5 * (means[:, :, :-1] + means[:, :, 1:])).to(k.dtype)


def with_neighbours(x: Tensor, count: int, dim: int) -> Tensor:
    """x [B, ...] of each sequence and behind it, along `dim`, that of the `count` sequences before it in the batch."""
    return torch.cat([x, *(x.roll(n, 0) for n in range(1, count + 1))], dim)


def _score(q: Tensor, k: Tensor, positions: Tensor, stride: int, far: Tensor | None, neighbours: int) -> Tensor:
    """Logits [B, Hkv, G, Q, (1 + neighbours) n] fp32 of q [B, Hkv, G, Q, d] and the pooled keys of k [B, Hkv, T, d].

    Own keys that are not complete at `positions` [B or 1, Q] are masked, and neighbours' keys over tokens that are not
    `far` [B, T].
    """
    keys = pooled_keys(k, stride)
    ends = torch.arange(keys.shape[2], device=q.device) * stride + 2 * stride
    hidden = ends[None, None] > positions[..., None] + 1
    if neighbours:
        assert far is not None
        near = pooled_keys(far[:, None, :, None].float(), stride)[:, :, :, 0] < 1
        others = with_neighbours(near, neighbours, 2)[:, :, near.shape[2] :]
        batch, asked = near.shape[0], positions.shape[1]
        hidden = torch.cat([hidden.expand(batch, -1, -1), others.expand(-1, asked, -1)], -1)
        keys = with_neighbours(keys, neighbours, 2)
    logits = torch.matmul(q, keys[:, :, None].transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    masked: Tensor = logits.masked_fill(hidden[:, None, None], _FAR)
    return masked


def group_scores(q: Tensor, k: Tensor, positions: Tensor, far: Tensor | None = None, neighbours: int = 0) -> Tensor:
    """log of the runtime's P: log sum over the group of exp(fine logit - lse over coarse logits): [B, Hkv, Q, n].

    q [B, Hkv, G, Q, d]; k [B, Hkv, T, d] with T a multiple of 64. Coarse keys are means of 128 keys every 64. With
    `neighbours` the far keys of so many other sequences stand behind the own ones, n for each.
    """
    fine = _score(q, k, positions, STRIDE, far, neighbours)
    coarse = torch.logsumexp(_score(q, k, positions, 4 * STRIDE, far, neighbours), -1, keepdim=True)
    coarse = torch.where(coarse < _FAR / 2, 0.0, coarse)
    return torch.logsumexp(torch.where(fine < _FAR / 2, _FAR, fine - coarse), 2)


def compressed_loss(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    sources: Tensor,
    document_end: Tensor,
    log_dilution: Tensor,
    far: Tensor | None = None,
    neighbours: int = 0,
) -> tuple[Tensor, Tensor]:
    """(mean loss, share of queries whose source is among the 16 best keys).

    Minus the log of the share of P that the keys over the source token have, with `log_dilution` added to the log of
    every other key's P: a short document then competes like one that is exp(log_dilution) times as long. Keys after
    the documents take no part: at use they are within the local window, which is read anyway. The `far` [B, T] keys of
    `neighbours` other sequences take part as if they stood in the same text.
    q [B, H, T, d], k [B, Hkv, T, d]; queries, sources [B, Q], -1 where absent; document_end [B].
    """
    batch, heads, _, dim = q.shape
    kv_heads = k.shape[1]
    index = queries.clamp(min=0)[:, None, :, None].expand(batch, heads, -1, dim)
    asked = q.gather(2, index).view(batch, kv_heads, heads // kv_heads, -1, dim)
    scores = group_scores(asked, k, queries, far, neighbours)
    key = torch.arange(scores.shape[-1], device=q.device)
    theirs = key >= k.shape[2] // STRIDE - 1
    own = sources[..., None] // STRIDE
    positive = (((key == own) | (key == own - 1)) & ~theirs)[:, None]
    visible = (scores > _FAR / 2) & (theirs | (key * STRIDE < document_end[:, None]))[:, None, None]
    valid = ((queries >= 0)[:, None] & (positive & visible).any(-1)).float()
    wrong = torch.where(visible & ~positive, scores, _FAR)
    right = torch.logsumexp(torch.where(visible & positive, scores, _FAR), -1)
    every = torch.logaddexp(right, torch.logsumexp(wrong, -1) + log_dilution)
    best = torch.where(visible & positive, scores, _FAR).amax(-1, keepdim=True)
    found = ((wrong > best).sum(-1) < 16).float()
    count = valid.sum().clamp(min=1)
    return ((every - right) * valid).sum() / count, (found * valid).sum() / count


def pooled_scores(q: Tensor, k: Tensor) -> Tensor:
    """Best score of the keys that touch each block, for every query of a whole sequence: [B, Hkv, T, T/64] fp32."""
    batch, heads, tokens, dim = q.shape
    kv_heads = k.shape[1]
    position = torch.arange(tokens, device=q.device)
    scores = group_scores(q.view(batch, kv_heads, heads // kv_heads, tokens, dim), k, position[None])
    ratio = BLOCK // STRIDE
    scores = F.pad(scores, (1, ratio * (tokens // BLOCK) - scores.shape[-1]), value=_FAR)
    return scores.unfold(-1, ratio + 1, ratio).amax(-1)


def picked_blocks(pooled: Tensor, window: int, picks: int) -> Tensor:
    """Blocks each query of a whole sequence reads: bool [B, Hkv, T, T/64].

    Block 0, the query's own and `window // 64` before it, and the `picks` best others. Picking is by rank (how many
    blocks beat this one), which is plain arithmetic and compiles; ties go to the lower block.
    """
    tokens, blocks = pooled.shape[-2:]
    own = (torch.arange(tokens, device=pooled.device) // BLOCK)[:, None]
    block = torch.arange(blocks, device=pooled.device)
    forced = (block == 0) | ((block <= own) & (block >= own - window // BLOCK))
    open_scores = torch.where(forced | (block > own), _FAR, pooled)
    mine, theirs = open_scores[..., :, None], open_scores[..., None, :]
    rank = ((theirs > mine) | ((theirs == mine) & (block[None, :] < block[:, None]))).sum(-1)
    return (forced | ((rank < picks) & (open_scores > _FAR / 2))) & (block <= own)
