"""What the kernels over packed weights share: rows of a matrix in planes times one vector. Knows no launcher."""

from __future__ import annotations

import triton
import triton.language as tl

# 16.0 and 256.0, the powers of two whose mantissas take a code. Kernels get them as arguments: as constants each would
# be a second immediate of the logic operation, which takes one, and ptxas would split it in two.
ONE_HIGH = 0x41800000
ONE_LOW = 0x43800000


@triton.jit
def field(words, one_high, one_low, PLANE: tl.constexpr, BITS: tl.constexpr):
    """Codes of one plane as float32, plus 16 or 256: the code's bits become the mantissa of a power of two.

    A shift and a three-input logic operation, where a conversion would run at a quarter to a half of their rate. Two
    neighbouring planes of 4 bits share the shift: one lands at the top of the mantissa, the other 4 bits below.
    """
    IS_HIGH: tl.constexpr = BITS == 4 and PLANE % 2 == 1
    SHIFT: tl.constexpr = 8 * PLANE - 15 if BITS == 8 else 4 * (PLANE // 2 * 2 + 1) - 19
    MASK: tl.constexpr = 0x7F8000 if BITS == 8 else 0x780000 if IS_HIGH else 0x78000
    # Shifting right copies the sign, no lower than bit 23: the mask takes the copies away.
    moved = words << -SHIFT if SHIFT < 0 else words >> SHIFT
    return ((moved & MASK) | (one_high if IS_HIGH else one_low)).to(tl.float32, bitcast=True)


@triton.jit
def dot_rows(
    words_ptr, scales_ptr, zeros_ptr, x_ptr, first_row, rows_total, one_high, one_low,
    BITS: tl.constexpr, HAS_ZEROS: tl.constexpr, GROUP: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, QUADS: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows `first_row`.. of a matrix times x [COLUMNS] -> float32 [ROWS]; rows past the last one repeat it.

    A thread holds the same four words of every row: one 16-byte load each, all of them in flight at once, and x is
    turned into float32 once for ROWS weights.
    """
    PLANES: tl.constexpr = 32 // BITS
    SPAN: tl.constexpr = GROUP // PLANES
    QUADS_PER_GROUP: tl.constexpr = SPAN // 4
    ALL_QUADS: tl.constexpr = COLUMNS * BITS // 128
    GROUPS: tl.constexpr = COLUMNS // GROUP
    CENTER: tl.constexpr = 0 if HAS_ZEROS else (1 << (BITS - 1))
    rows = tl.minimum(tl.arange(0, ROWS), (rows_total - 1 - first_row).to(tl.int32))
    wide_row = first_row.to(tl.int64)
    words_ptr += wide_row * (ALL_QUADS * 4)
    scales_ptr += wide_row * GROUPS
    zeros_ptr += wide_row * GROUPS
    lane = tl.arange(0, 4)
    acc = tl.zeros([QUADS, ROWS], tl.float32)
    for start in tl.range(0, ALL_QUADS, QUADS, num_stages=STAGES):
        quads = start + tl.arange(0, QUADS)
        at_words = quads[:, None, None] * 4 + rows[None, :, None] * (ALL_QUADS * 4) + lane[None, None, :]
        at_groups = (quads // QUADS_PER_GROUP)[:, None] + rows[None, :] * GROUPS
        at_x = (quads // QUADS_PER_GROUP * GROUP + quads % QUADS_PER_GROUP * 4)[:, None] + lane[None, :]
        if ALL_QUADS % QUADS == 0:
            words = tl.load(words_ptr + at_words, eviction_policy="evict_first")
            scales = tl.load(scales_ptr + at_groups).to(tl.float32)
        else:
            inside = quads < ALL_QUADS
            words = tl.load(words_ptr + at_words, mask=inside[:, None, None], other=0, eviction_policy="evict_first")
            scales = tl.load(scales_ptr + at_groups, mask=inside[:, None], other=0.0).to(tl.float32)
        if HAS_ZEROS:
            if ALL_QUADS % QUADS == 0:
                zeros = tl.load(zeros_ptr + at_groups).to(tl.float32)
            else:
                zeros = tl.load(zeros_ptr + at_groups, mask=inside[:, None], other=0).to(tl.float32)
        products = tl.zeros([QUADS, ROWS, 4], tl.float32)
        offsets = tl.zeros([QUADS, 4], tl.float32)
        sums = tl.zeros([QUADS, 4], tl.float32)
        for plane in tl.static_range(PLANES):
            if ALL_QUADS % QUADS == 0:
                x = tl.load(x_ptr + at_x + plane * SPAN).to(tl.float32)
            else:
                x = tl.load(x_ptr + at_x + plane * SPAN, mask=inside[:, None], other=0.0).to(tl.float32)
            codes = field(words, one_high, one_low, plane, BITS)
            if EXACT:
                if HAS_ZEROS:
                    codes -= zeros[:, :, None] + (16 if BITS == 4 and plane % 2 == 1 else 256)
                else:
                    codes -= CENTER + (16 if BITS == 4 and plane % 2 == 1 else 256)
            else:
                offsets += x * (CENTER + (16 if BITS == 4 and plane % 2 == 1 else 256))
                if HAS_ZEROS:
                    sums += x
            products += codes * x[:, None, :]
        partial = tl.sum(products, 2)
        if not EXACT:
            partial -= tl.sum(offsets, 1)[:, None]
            if HAS_ZEROS:
                partial -= zeros * tl.sum(sums, 1)[:, None]
        acc += partial * scales
    return tl.sum(acc, 0)
