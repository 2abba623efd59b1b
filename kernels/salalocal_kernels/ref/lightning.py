"""Lightning linear attention: a decayed sum of k v^T, read by q. Knows no norms, positions or gates.

    S_t = exp(-slope) S_{t-1} + k_t v_t^T        o_t = scale * q_t^T S_t

The current token is added undecayed and is visible to itself. Source: Lightning Attention-2 (tiling into
intra-chunk products and an inter-chunk state); slopes are those of ALiBi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Tokens whose pairwise products are formed at once. 64 keeps the quadratic part small on a CPU.
_TILE_TOKENS = 64


def lightning_slopes(num_heads: int) -> list[float]:
    """Decay rate of each head per token, rounded to float32 as the vendor's are.

    Powers of r = 2^(-8/n) for n a power of two; otherwise those of the largest power of two c < n followed by every
    second one of 2c. The same in every layer.
    """

    def powers(n: int) -> list[float]:
        ratio = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [ratio ** (index + 1) for index in range(n)]

    below = 1 << (num_heads.bit_length() - 1)
    slopes = powers(below)
    if below != num_heads:
        slopes += powers(2 * below)[0::2][: num_heads - below]
    return torch.tensor(slopes, dtype=torch.float64).float().tolist()


def lightning_prefill(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads T tokens after `state`.

    Args:
        q: [T, H, Dk], any float dtype.
        k: [T, Hkv, Dk]; query head a uses kv head a // (H / Hkv).
        v: [T, Hkv, Dv].
        slopes: [H], dtype of state.
        scale: factor on the output.
        state: [H, Dk, Dv] float32 (float64 in a float64 run); not changed.

    Returns:
        out [T, H, Dv] in q's dtype, and the state after the last token, [H, Dk, Dv].
    """
    tokens, heads, _ = q.shape
    wide = state.dtype
    out = torch.empty(tokens, heads, v.shape[-1], dtype=q.dtype, device=q.device)
    offsets = torch.arange(_TILE_TOKENS, device=q.device)
    distance = (offsets[:, None] - offsets[None, :]).to(wide)
    # Only i >= j is kept, so no exponent is positive and nothing overflows, however steep the slope.
    within = torch.exp(-slopes[:, None, None] * distance.clamp(min=0)) * (distance >= 0)
    from_state = torch.exp(-slopes[:, None] * (offsets + 1))[..., None]
    for start in range(0, tokens, _TILE_TOKENS):
        stop = min(start + _TILE_TOKENS, tokens)
        size = stop - start
        q_tile = q[start:stop].to(wide).transpose(0, 1)
        k_tile = _per_query_head(k[start:stop].to(wide), heads)
        v_tile = _per_query_head(v[start:stop].to(wide), heads)
        weights = (q_tile @ k_tile.transpose(1, 2)) * within[:, :size, :size]
        result = weights @ v_tile + from_state[:, :size] * (q_tile @ state)
        out[start:stop] = (scale * result).transpose(0, 1)
        to_end = torch.exp(-slopes[:, None] * (size - 1 - offsets[:size]))[..., None]
        decay = torch.exp(-slopes * size)[:, None, None]
        state = decay * state + (k_tile * to_end).transpose(1, 2) @ v_tile
    return out, state


def lightning_decode(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float, state: Tensor) -> Tensor:
    """Reads one token and updates `state` in place.

    Args:
        q: [H, Dk]. k: [Hkv, Dk]. v: [Hkv, Dv]. slopes: [H]. scale: factor on the output.
        state: [H, Dk, Dv] float32 or float64; overwritten by the state after this token.

    Returns:
        [H, Dv] in q's dtype.
    """
    heads, wide = q.shape[0], state.dtype
    key = _per_query_head(k[None].to(wide), heads)
    value = _per_query_head(v[None].to(wide), heads)
    # exp(-slope) rounded to float32 is off by up to 3e-8, which a head that remembers 256 tokens adds up to 1e-5;
    # expm1 keeps the small difference from 1 exact.
    state.addcmul_(state, torch.expm1(-slopes)[:, None, None])
    state.add_(key.transpose(1, 2) * value)
    return (scale * (q.to(wide)[:, None] @ state))[:, 0].to(q.dtype)


def _per_query_head(x: Tensor, heads: int) -> Tensor:
    """[T, Hkv, D] -> [H, T, D], kv heads repeated consecutively."""
    return x.transpose(0, 1).repeat_interleave(heads // x.shape[1], dim=0)
