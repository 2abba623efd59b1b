"""The linear-attention layer: q/k norm, RoPE, Lightning attention, output norm and gate. Knows no residuals."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from salalocal.config import ModelConfig
from salalocal.model.span import Span
from salalocal_kernels import lightning_prefill, lightning_step, norm_gate, qk_norm_rope
from salalocal_quant import Projections, Weight


@dataclass(frozen=True)
class LightningLayer:
    """Weights of one lightning layer.

    Attributes:
        config: sizes.
        inputs: W_q, W_k, W_v and, where the model has an output gate, W_z [H d, h].
        o_proj: output projection.
        q_norm, k_norm: [d] per head; None where the model has none.
        o_norm: [H d] over all heads jointly; None where the model has none.
        slopes: [H] decay per token, in the state's dtype.
    """

    config: ModelConfig
    inputs: Projections
    o_proj: Weight
    q_norm: Tensor | None
    k_norm: Tensor | None
    o_norm: Tensor | None
    slopes: Tensor

    def __call__(self, y: Tensor, state: Tensor, span: Span, into: Tensor) -> Tensor:
        """Mixes normed input y [T, h] with everything before it.

        Args:
            y: [T, h].
            state: [H, Dk, Dv] before these tokens, which stays.
            span: where the tokens are.
            into: where the state after these tokens goes.

        Returns:
            [T, h].
        """
        config, tokens = self.config, span.tokens
        q, k, v, *gates = self.inputs(y)
        gate = gates[0] if gates else None
        q = q.view(tokens, config.num_attention_heads, config.head_dim)
        k = k.view(tokens, config.lightning_nkv, config.head_dim)
        v = v.view(tokens, config.lightning_nkv, config.head_dim)
        scale, eps = config.lightning_scale, config.rms_norm_eps
        if tokens == 1:
            out = lightning_step(
                q[0], k[0], v[0], self.q_norm, self.k_norm, span.lightning_rope, self.slopes, scale, state,
                self.o_norm, None if gate is None else gate[0], eps, into,
            )[None]  # fmt: skip
        else:
            q, k = qk_norm_rope(q, k, self.q_norm, self.k_norm, eps, span.lightning_rope, True)
            mixed, after = lightning_prefill(q, k, v, self.slopes, scale, state)
            del q, k, v
            into.copy_(after)
            out = norm_gate(mixed.reshape(tokens, -1), self.o_norm, gate, eps)
        return self.o_proj(out)

    @property
    def matrices(self) -> tuple[Weight, ...]:
        """Every weight matrix."""
        return (*self.inputs.weights, self.o_proj)
