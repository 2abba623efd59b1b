"""The arithmetic of one MiniCPM-SALA layer, in pieces that `torch.compile` takes one at a time.

Every piece sees the tokens of a batch as one row after another, [N, hidden], so that batches of other shapes with the
same number of tokens need no new compilation. Weights are fp32 masters, cast to the activation's dtype here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension; statistic in fp32, cast before the weight as the vendor does."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """NeoX RoPE on x [N, heads, d] with fp32 tables [N, d]."""
    wide = x.float()
    first, second = wide.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(x.dtype)


def rotary_tables(tokens: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [tokens, head_dim], fp32, of positions 0..tokens-1."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angle = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * frequency[None]
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def feed_forward(
    x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float, residual_scale: float
) -> Tensor:
    """x + residual_scale * SwiGLU(rms_norm(x))."""
    hidden = rms_norm(x, norm, eps)
    opened, raised = (hidden @ torch.cat([gate, up]).to(x.dtype).t()).chunk(2, -1)
    return x + residual_scale * ((F.silu(opened) * raised) @ down.to(x.dtype).t())


def lightning_inputs(
    x: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor, z: Tensor, q_norm: Tensor, k_norm: Tensor,
    cos: Tensor, sin: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """q, k, v [N, heads, d] (normed, rotated) and the gate's logits [N, heads * d]."""
    head_dim = q_norm.shape[0]
    hidden = rms_norm(x, norm, eps) @ torch.cat([q, k, v, z]).to(x.dtype).t()
    queries, keys, values, gate = hidden.chunk(4, -1)
    shape = (x.shape[0], -1, head_dim)
    return (
        rotate(rms_norm(queries.reshape(shape), q_norm, eps), cos, sin),
        rotate(rms_norm(keys.reshape(shape), k_norm, eps), cos, sin),
        values.reshape(shape).contiguous(),
        gate,
    )


def lightning_mix(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, chunk: int) -> Tensor:
    """o_t = d^-1/2 sum_{j<=t} exp(-slope (t-j)) (q_t . k_j) v_j for q, k, v [B, T, H, d]; T a multiple of `chunk`.

    Within a chunk by a masked product, across chunks by the states, which are summed by one small matrix.
    """
    batch, tokens, heads, dim = q.shape
    count = tokens // chunk
    q, k, v = (a.view(batch, count, chunk, heads, dim).permute(0, 3, 1, 2, 4) for a in (q, k, v))
    position = torch.arange(chunk, device=q.device, dtype=torch.float32)
    distance = position[:, None] - position[None]
    decay = torch.where(distance >= 0, torch.exp(-slopes[:, None, None] * distance.clamp(min=0)), 0.0)
    inner = ((q @ k.transpose(-1, -2)) * decay[:, None].to(q.dtype)) @ v
    to_end = torch.exp(-slopes[:, None] * (chunk - 1 - position))[:, None, :, None]
    added = (k * to_end.to(k.dtype)).transpose(-1, -2) @ v
    order = torch.arange(count, device=q.device, dtype=torch.float32)
    gap = order[:, None] - order[None] - 1
    carry = torch.where(gap >= 0, torch.exp(-slopes[:, None, None] * chunk * gap.clamp(min=0)), 0.0)
    states = (carry.to(q.dtype) @ added.flatten(-2)).view(added.shape)
    from_start = torch.exp(-slopes[:, None] * (position + 1))[:, None, :, None]
    outer = (q * from_start.to(q.dtype)) @ states
    mixed = (inner + outer) * dim**-0.5
    result: Tensor = mixed.permute(0, 2, 3, 1, 4).reshape(batch, tokens, heads, dim)
    return result


def lightning_outputs(
    x: Tensor, mixed: Tensor, gate: Tensor, o_norm: Tensor, o: Tensor, norm: Tensor, mlp_gate: Tensor, up: Tensor,
    down: Tensor, eps: float, residual_scale: float,
) -> Tensor:  # fmt: skip
    """The rest of a lightning layer: output norm, gate, projection, feed-forward."""
    gated = rms_norm(mixed, o_norm, eps) * torch.sigmoid(gate.float()).to(x.dtype)
    x = x + residual_scale * (gated @ o.to(x.dtype).t())
    return feed_forward(x, norm, mlp_gate, up, down, eps, residual_scale)


def sparse_inputs(
    x: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q [N, heads * d], k, v [N, kv heads * d] and the gate's logits [N, heads * d]; no positions."""
    hidden = rms_norm(x, norm, eps) @ torch.cat([q, k, v, gate]).to(x.dtype).t()
    ends = (q.shape[0], q.shape[0] + k.shape[0], q.shape[0] + k.shape[0] + v.shape[0])
    return hidden[:, : ends[0]], hidden[:, ends[0] : ends[1]], hidden[:, ends[1] : ends[2]], hidden[:, ends[2] :]


def crowded(q: Tensor, k: Tensor, v: Tensor, crowd: Tensor, document_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, H, T, d], k, v [B, Hkv, T, d] with eight more dimensions, by which queries from `document_end` [B] on find
    `crowd` [B, T] added to their logits (at a scale of d^-1/2). A short text then competes like a long one."""
    batch, _, tokens, dim = q.shape
    asks = (torch.arange(tokens, device=q.device) >= document_end[:, None]).to(q.dtype)
    more = (crowd * dim**0.5).to(k.dtype)
    q = torch.cat([F.pad(q, (0, 7)), asks[:, None, :, None].expand(batch, q.shape[1], tokens, 1)], -1)
    k = torch.cat([F.pad(k, (0, 7)), more[:, None, :, None].expand(batch, k.shape[1], tokens, 1)], -1)
    return q, k, F.pad(v, (0, 8))


def sparse_outputs(
    x: Tensor, mixed: Tensor, gate: Tensor, o: Tensor, norm: Tensor, mlp_gate: Tensor, up: Tensor, down: Tensor,
    eps: float, residual_scale: float,
) -> Tensor:  # fmt: skip
    """The rest of a sparse layer: gate, projection, feed-forward."""
    gated = mixed * torch.sigmoid(gate.float()).to(x.dtype)
    x = x + residual_scale * (gated @ o.to(x.dtype).t())
    return feed_forward(x, norm, mlp_gate, up, down, eps, residual_scale)


def head_loss(
    x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, eps: float, divisor: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy [N] fp32 of `targets` [N], and whether the likeliest token is the target."""
    logits = ((rms_norm(x, norm, eps) / divisor) @ embedding.to(x.dtype).t()).float()
    normalizer = torch.logsumexp(logits, -1)
    return normalizer - logits.gather(-1, targets[:, None])[:, 0], logits.argmax(-1) == targets
