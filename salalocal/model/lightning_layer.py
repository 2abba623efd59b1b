"""The linear-attention layer: q/k norm, RoPE, Lightning attention, output norm and gate. Knows no residuals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.model.span import Span
from salalocal_kernels import lightning_decode, lightning_prefill, rms_norm, rope
from salalocal_quant import Weight


@dataclass(frozen=True)
class LightningLayer:
    """Weights of one lightning layer.

    Attributes:
        config: sizes.
        q_proj, k_proj, v_proj, o_proj: projections.
        z_proj: output gate [H d, h]; None where the model has none.
        q_norm, k_norm: [d] per head; None where the model has none.
        o_norm: [H d] over all heads jointly; None where the model has none.
        slopes: [H] decay per token, in the state's dtype.
    """

    config: ModelConfig
    q_proj: Weight
    k_proj: Weight
    v_proj: Weight
    o_proj: Weight
    z_proj: Weight | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o_norm: Tensor | None
    slopes: Tensor

    def __call__(self, y: Tensor, state: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """Mixes normed input y [T, h] with everything before it.

        Args:
            y: [T, h].
            state: [H, Dk, Dv] before these tokens; not changed.
            span: where the tokens are.

        Returns:
            [T, h], and the state after them.
        """
        config, tokens = self.config, span.tokens
        q = self.q_proj(y).view(tokens, config.num_attention_heads, config.head_dim)
        k = self.k_proj(y).view(tokens, config.lightning_nkv, config.head_dim)
        v = self.v_proj(y).view(tokens, config.lightning_nkv, config.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm, config.rms_norm_eps)
            k = rms_norm(k, self.k_norm, config.rms_norm_eps)
        if config.lightning_use_rope:
            q = rope(q, span.first_position, config.rope_theta)
            k = rope(k, span.first_position, config.rope_theta)
        if tokens == 1:
            state = state.clone()
            out = lightning_decode(q[0], k[0], v[0], self.slopes, config.lightning_scale, state)[None]
        else:
            out, state = lightning_prefill(q, k, v, self.slopes, config.lightning_scale, state)
        out = out.reshape(tokens, -1)
        if self.o_norm is not None:
            out = rms_norm(out, self.o_norm, config.rms_norm_eps)
        if self.z_proj is not None:
            out = out * torch.sigmoid(self.z_proj(y))
        return self.o_proj(out), state
