"""Stage 1 of InfLLM-V2: how much each query wants each block, from compressed keys.

Source: MiniCPM4 report (InfLLM-V2) and the vendor's CUDA kernels; visibility follows the ideal rule at every length
(a compressed key is visible from its last token on).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Elements of one slab of probabilities (heads x queries x compressed keys); 32 MiB in float32.
_SLAB_ELEMENTS = 8 << 20


def block_scores(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    first_position: int | Tensor,
    scale: float,
    kernel_stride: int,
    block_size: int,
    num_blocks: int,
) -> Tensor:
    """Scores every block for every query, before initial and local blocks are forced.

    For the heads a of a kv group: lse_a = log sum_j exp(scale q_a . k2_j) over visible coarse keys, then
    P_j = sum_a exp(scale q_a . k1_j - lse_a) over visible fine keys, 0 for keys in the future (and for the whole row
    while no coarse key is visible). A block's score is the largest P_j of the fine keys that overlap it. P is not
    rounded below float32.

    Args:
        q: [T, H, D]; row r is the token at first_position + r.
        k1: [Hkv, n1, D], means over 2 * kernel_stride tokens every kernel_stride.
        k2: [Hkv, n2, D], means over 8 * kernel_stride tokens every 4 * kernel_stride.
        first_position: absolute position of the first query; an int64 tensor of one element where only the device
            knows it (a captured graph), which this definition waits for.
        scale: factor on q . k.
        kernel_stride: tokens between fine compressed keys.
        block_size: tokens per block, a multiple of kernel_stride.
        num_blocks: blocks to score, ceil(length / block_size). It may be more, and k1 and k2 longer, than any query
            sees: such blocks score 0 or -inf, whatever the keys hold.

    Returns:
        [Hkv, T, num_blocks] float32 (float64 for float64 input); -inf where no compressed key overlaps the block.
    """
    tokens, heads, _ = q.shape
    first_position = int(first_position)
    kv_heads, fine_count, _ = k1.shape
    group = heads // kv_heads
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.empty(kv_heads, tokens, num_blocks, dtype=wide, device=q.device)
    rows = max(1, _SLAB_ELEMENTS // max(1, group * max(fine_count, 1)))
    for head in range(kv_heads):
        fine, coarse = k1[head].to(wide), k2[head].to(wide)
        for start in range(0, tokens, rows):
            stop = min(start + rows, tokens)
            positions = torch.arange(first_position + start, first_position + stop, device=q.device)
            q_tile = q[start:stop, head * group : (head + 1) * group].to(wide) * scale
            p = _group_probabilities(q_tile, fine, coarse, positions, kernel_stride)
            scores[head, start:stop] = _max_pool(p, block_size // kernel_stride, num_blocks)
    return scores


def _group_probabilities(q: Tensor, fine: Tensor, coarse: Tensor, positions: Tensor, stride: int) -> Tensor:
    """P of one kv head: q [T, G, D] scaled -> [T, n1]."""
    fine_visible = _visible(positions, fine.shape[0], stride)
    coarse_visible = _visible(positions, coarse.shape[0], 4 * stride)
    coarse_logits = q @ coarse.T
    coarse_logits.masked_fill_(~coarse_visible[:, None], -torch.inf)
    lse = torch.logsumexp(coarse_logits, dim=-1)
    # A row without visible coarse keys has lse = -inf and scores 0 throughout.
    lse = lse.masked_fill(lse == -torch.inf, torch.inf)
    logits = q @ fine.T
    p = logits.sub_(lse[..., None]).exp_().sum(dim=1)
    return p.masked_fill_(~fine_visible, 0)


def _visible(positions: Tensor, count: int, stride: int) -> Tensor:
    """[T, count]: window j of 2 * stride tokens every `stride` has ended at or before the position."""
    ends = (torch.arange(count, device=positions.device) + 2) * stride
    return ends <= positions[:, None] + 1


def _max_pool(p: Tensor, per_block: int, num_blocks: int) -> Tensor:
    """Largest P over fine keys per_block * b - 1 ... per_block * b + per_block - 1, which overlap block b."""
    width = per_block * num_blocks + 1
    padded = functional.pad(p, (1, max(0, width - 1 - p.shape[1])), value=-torch.inf)[:, :width]
    return padded.unfold(1, per_block + 1, per_block).amax(-1)
