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


def _score(q: Tensor, keys: Tensor, positions: Tensor, stride: int) -> Tensor:
    """Logits [B, Hkv, G, Q, n] fp32 of q [B, Hkv, G, Q, d]; keys not complete at `positions` [B or 1, Q] masked."""
    logits = torch.matmul(q, keys[:, :, None].transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    ends = torch.arange(keys.shape[2], device=q.device) * stride + 2 * stride
    hidden = ends[None, None] > positions[..., None] + 1
    masked: Tensor = logits.masked_fill(hidden[:, None, None], _FAR)
    return masked


def group_scores(q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
    """log of the runtime's P: log sum over the group of exp(fine logit - lse over coarse logits): [B, Hkv, Q, n].

    q [B, Hkv, G, Q, d]; k [B, Hkv, T, d] with T a multiple of 64. Coarse keys are means of 128 keys every 64.
    """
    fine = _score(q, pooled_keys(k, STRIDE), positions, STRIDE)
    coarse = torch.logsumexp(_score(q, pooled_keys(k, 4 * STRIDE), positions, 4 * STRIDE), -1, keepdim=True)
    coarse = torch.where(coarse < _FAR / 2, 0.0, coarse)
    return torch.logsumexp(torch.where(fine < _FAR / 2, _FAR, fine - coarse), 2)


def compressed_loss(
    q: Tensor, k: Tensor, queries: Tensor, sources: Tensor, document_end: Tensor, log_dilution: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean loss, share of queries whose source is among the 16 best keys).

    Minus the log of the share of P that the keys over the source token have, with `log_dilution` added to the log of
    every other key's P: a short document then competes like one that is exp(log_dilution) times as long. Keys after
    the documents take no part: at use they are within the local window, which is read anyway.
    q [B, H, T, d], k [B, Hkv, T, d]; queries, sources [B, Q], -1 where absent; document_end [B].
    """
    batch, heads, _, dim = q.shape
    kv_heads = k.shape[1]
    index = queries.clamp(min=0)[:, None, :, None].expand(batch, heads, -1, dim)
    asked = q.gather(2, index).view(batch, kv_heads, heads // kv_heads, -1, dim)
    scores = group_scores(asked, k, queries)
    key = torch.arange(scores.shape[-1], device=q.device)
    own = sources[..., None] // STRIDE
    positive = ((key == own) | (key == own - 1))[:, None]
    visible = (scores > _FAR / 2) & (key * STRIDE < document_end[:, None])[:, None, None]
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
