"""Cards that are not here: what NVIDIA publishes of them, and how much of it is to be expected. Knows no torch.

Sources: the architecture whitepapers (GA102 v2.1, Ada, RTX Blackwell: tensor rates per SM, of the RTX 4090 and 5090 all
figures) and the specification pages of the GeForce RTX 30, 40 and 50 series (SMs, boost clock, memory, PCIe).
"""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.bus_times import Bus
from salalocal.config import ModelConfig
from salalocal.roofline import Bare, card_rates
from salalocal.times import Rates

# Dense operations of an SM in a clock, on all three generations: bfloat16 with sums in float32; int8; fp8 with sums in
# float32, from Ada on.
_BF16, _INT8, _FP8 = 512, 2048, 1024
# GB/s of a lane by generation, one way.
_LANE_BYTES = {4: 1.969e9, 5: 3.938e9}
# What an H100 (SXM, 3.35 TB/s, 989 TFLOP/s in bfloat16, 1,979 in 8 bits, PCIe 5 x16) was measured to reach of its own
# published figures, docs/performance.md: 2.92 TB/s, 680, 871 and 1,285 TFLOP/s, 48.6 GB/s. Taken to hold for all.
_COPY_SHARE = 2.92 / 3.35
_PRODUCT_SHARES = {"bf16": 680 / 989, "int8": 871 / 1979, "fp8": 1285 / 1979}
_BUS_SHARE = 48.6e9 / (16 * _LANE_BYTES[5])
# gather_rows of 16,384 tokens from host memory, in the table of kernels.
_GATHER_SHARE = 0.94
# What adding up one piece more moves of each query: its sum and the piece's part, in float32, read and written.
_PIECE_COPIES = 4


@dataclass(frozen=True)
class Card:
    """What is published of a card.

    Attributes:
        name: its name.
        memory_bytes: of its own.
        multiprocessors: SMs.
        boost_hz: clock that tensor rates are published for.
        memory_bytes_per_second: of its own memory.
        pcie: generation and lanes.
        has_fp8: multiplies in e4m3.
    """

    name: str
    memory_bytes: int
    multiprocessors: int
    boost_hz: float
    memory_bytes_per_second: float
    pcie: tuple[int, int]
    has_fp8: bool = True

    @property
    def matmul_flop(self) -> float:
        """Published, dense, bfloat16 with sums in float32."""
        return self.multiprocessors * self.boost_hz * _BF16

    def rates(self, config: ModelConfig) -> Rates:
        """What to expect with a model of this shape; fetches' own time and page-locking are not known and left out."""
        clocks, copy = self.multiprocessors * self.boost_hz, _COPY_SHARE * self.memory_bytes_per_second
        generation, lanes = self.pcie
        bus = _BUS_SHARE * lanes * _LANE_BYTES[generation]
        row = config.num_attention_heads * config.sparse_head_dim * 4
        narrow = {"int8": _INT8} | ({"fp8": _FP8} if self.has_fp8 else {})
        return card_rates(
            Bare(
                copy_bytes=copy,
                matmul_flop=_PRODUCT_SHARES["bf16"] * self.matmul_flop,
                narrow_flop={name: _PRODUCT_SHARES[name] * clocks * count for name, count in narrow.items()},
                bus=Bus(bus, bus, _GATHER_SHARE * bus, 0.0, _PIECE_COPIES * row / copy, 0.0),
            )
        )


CARDS = (
    Card("RTX 5090", 32 << 30, 170, 2.407e9, 1792e9, (5, 16)),
    Card("RTX 4090", 24 << 30, 128, 2.520e9, 1008e9, (4, 16)),
    Card("RTX 3060", 12 << 30, 28, 1.777e9, 360e9, (4, 16), has_fp8=False),
    Card("RTX 4060", 8 << 30, 24, 2.460e9, 272e9, (4, 8)),
)
