"""Dense attention on a GPU, below the length from which blocks are selected: PyTorch's, in one call."""

from __future__ import annotations

from torch import Tensor, float32
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from salalocal_kernels.ref import attention


def dense_attention(q: Tensor, pages: Tensor, first_position: int, scale: float) -> Tensor:
    """The op of `ref/attention.py`, same arguments and result.

    In float32 it is the definition itself, which is made of PyTorch's attention too: the kernels with true float32 sums
    want a mask.
    """
    if q.dtype == float32:
        return attention.dense_attention(q, pages, first_position, scale)
    tokens, heads, dim = q.shape
    kv_heads, length = pages.shape[1], first_position + tokens
    keys, values = (pages[:, :, side].transpose(0, 1).reshape(kv_heads, -1, dim)[None, :, :length] for side in (0, 1))
    queries = q.transpose(0, 1)[None]
    if first_position == 0:
        out = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale, enable_gqa=True)
    else:
        keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in (keys, values))
        mask = causal_lower_right(tokens, length)
        out = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return out[0].transpose(0, 1)
