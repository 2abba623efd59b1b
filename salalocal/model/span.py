"""What a layer needs to know about the tokens it is given. Knows no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.config import ModelConfig
from salalocal_kernels import rope_table


@dataclass(frozen=True)
class Span:
    """A run of new tokens.

    Attributes:
        first_position: absolute position of the first one; int64 [1] on the device for the one token of a captured
            step, whose position changes between replays.
        tokens: how many.
        length: tokens in the cache once these are read, like first_position.
        is_sparse: whether attention layers select blocks; decided on the final length of the whole prompt.
        is_watched: whether attention layers say how the last token's attention is shared out.
        lightning_rope, attention_rope: cosines and sines [tokens, D] of these positions for the two kinds of layers;
            None where they use no RoPE.
    """

    first_position: int | Tensor
    tokens: int
    length: int | Tensor
    is_sparse: bool
    is_watched: bool
    lightning_rope: Tensor | None
    attention_rope: Tensor | None

    @staticmethod
    def of(
        config: ModelConfig,
        first_position: int | Tensor,
        tokens: int,
        is_sparse: bool,
        is_watched: bool,
        dtype: torch.dtype,
        device: torch.device,
        length: Tensor | None = None,
    ) -> Span:
        """A run of `tokens`, with tables at least float32 on `device` for activations in `dtype`.

        Where the device knows `length` already, it is not added up once more.
        """
        wide = torch.promote_types(dtype, torch.float32)
        positions = first_position
        if not isinstance(positions, Tensor):
            positions = torch.arange(positions, positions + tokens, device=device)

        def table(is_used: bool, dim: int) -> Tensor | None:
            return rope_table(positions, dim, config.rope_theta, wide) if is_used else None

        return Span(
            first_position=first_position,
            tokens=tokens,
            length=first_position + tokens if length is None else length,
            is_sparse=is_sparse,
            is_watched=is_watched,
            lightning_rope=table(config.lightning_use_rope and bool(config.lightning_layers), config.head_dim),
            attention_rope=table(config.attn_use_rope, config.sparse_head_dim),
        )
