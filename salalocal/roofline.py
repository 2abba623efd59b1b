"""Rates of a card from what it can do at most, and the shares of that which our kernels reach. Pure arithmetic.

The shares are those of docs/performance.md, measured on one H100: of the copy or of the large product of the same run.
They stand for every card; how large copies and products are, each card is measured for or publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from salalocal.bus_times import Bus
from salalocal.times import Rates

# "The kernels by themselves": the packed products of one step of the released model, each as often as it is there,
# take 2.2 ms for 5.2 GB: 81 % of the copy.
_PACKED_ROW_SHARE = 0.81
# sparse_attention_prefill, replayed, at 128K: 245 of 720 TFLOP/s.
_ATTENTION_SHARE = 0.34
# block_scores at 1M: 61 % of the product; and the selection among them, which takes 24.7 % of their time more.
_SCORING_SHARE = 0.61 / 1.247
# scaled_linear in int8, a scale for each row, beside PyTorch's own product; in fp8 PyTorch's own serves.
_NARROW_SHARES = {"int8": 1.26, "fp8": 1.0}
# "Prefill": of a chunk of 8,192 tokens, norms take 12 ms, Lightning layers 10, SiLU and its product 9. A copy of so
# many bytes for each token, layer and channel takes as long at 2.92 TB/s.
_COPIED_PER_CHANNEL = 31e-3 * 2.92e12 / (8192 * 32 * 4096)
# "Decode steps": what a step takes beyond its bytes at the rate above, shared out among 32 layers: norms, states, and
# scores, selection and attention of the sparse layers (0.48 ms by themselves), and what is between launches.
_LAYER_STEP_SECONDS = 19e-6


@dataclass(frozen=True)
class Bare:
    """What a card does without a model.

    Attributes:
        copy_bytes: a second, within its memory, bytes read plus bytes written.
        matmul_flop: a second, of a large product in bfloat16.
        narrow_flop: the same in "int8" and "fp8", of those that it has.
        bus: to main memory; None where it is not known.
        layer_chunk_seconds: the least that a layer of a chunk takes; 0 where it is not known.
    """

    copy_bytes: float
    matmul_flop: float
    narrow_flop: Mapping[str, float]
    bus: Bus | None = None
    layer_chunk_seconds: float = 0.0


def card_rates(bare: Bare) -> Rates:
    """What predictions are made from."""
    return Rates(
        matmul_flop=bare.matmul_flop,
        memory_bytes=_PACKED_ROW_SHARE * bare.copy_bytes,
        channels=bare.copy_bytes / _COPIED_PER_CHANNEL,
        dense_flop=_ATTENTION_SHARE * bare.matmul_flop,
        sparse_flop=_ATTENTION_SHARE * bare.matmul_flop,
        score_flop=_SCORING_SHARE * bare.matmul_flop,
        layer_step_seconds=_LAYER_STEP_SECONDS,
        layer_chunk_seconds=bare.layer_chunk_seconds,
        narrow_flop={name: _NARROW_SHARES[name] * flop for name, flop in bare.narrow_flop.items()},
        bus=bare.bus,
    )
