"""What the kernels over packed weights share: rows of a matrix in planes times one vector. Knows no launcher."""

from __future__ import annotations

import triton
import triton.language as tl

from salalocal_kernels.gpu.early import wait

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
    ROWS: tl.constexpr, QUADS: tl.constexpr, EXACT: tl.constexpr, STAGES: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Rows `first_row`.. of a matrix times x [COLUMNS] -> float32 [ROWS]; rows past the last one repeat it.

    A thread holds the same four words of every row: one 16-byte load each, all of them in flight at once, and x is
    turned into float32 once for ROWS weights. Rows are tensors of their own, which keeps every element with the thread
    that loaded it; as one tensor Triton spreads the threads over the rows and sends x through shared memory, plane by
    plane. With IS_EARLY the program may have begun before the launch before it ended: the first weights are asked for,
    then x is waited for.
    """
    PLANES: tl.constexpr = 32 // BITS
    SPAN: tl.constexpr = GROUP // PLANES
    QUADS_PER_GROUP: tl.constexpr = SPAN // 4
    ALL_QUADS: tl.constexpr = COLUMNS * BITS // 128
    GROUPS: tl.constexpr = COLUMNS // GROUP
    IS_WHOLE: tl.constexpr = ALL_QUADS % QUADS == 0
    last_row = (rows_total - 1 - first_row).to(tl.int32)
    wide_row = first_row.to(tl.int64)
    words_ptr += wide_row * (ALL_QUADS * 4)
    scales_ptr += wide_row * GROUPS
    zeros_ptr += wide_row * GROUPS
    lane = tl.arange(0, 4)[None, :]
    acc = tl.zeros([QUADS, ROWS], tl.float32)
    for start in tl.range(0, ALL_QUADS, QUADS, num_stages=STAGES):
        quads = start + tl.arange(0, QUADS)
        inside = quads < ALL_QUADS
        each = inside[:, None]
        at_words = quads[:, None] * 4 + lane
        at_groups = quads // QUADS_PER_GROUP
        at_x = (at_groups * GROUP + quads % QUADS_PER_GROUP * 4)[:, None] + lane
        words = ()
        scales = ()
        zeros = ()
        for row in tl.static_range(ROWS):
            own = tl.minimum(row, last_row)
            words += (load(words_ptr + own * (ALL_QUADS * 4) + at_words, each, IS_WHOLE, "evict_first"),)
            scales += (load(scales_ptr + own * GROUPS + at_groups, inside, IS_WHOLE, "").to(tl.float32),)
            if HAS_ZEROS:
                zeros += (load(zeros_ptr + own * GROUPS + at_groups, inside, IS_WHOLE, "").to(tl.float32),)
        wait(IS_EARLY)
        planes = ()
        for plane in tl.static_range(PLANES):
            planes += (load(x_ptr + at_x + plane * SPAN, each, IS_WHOLE, ""),)
        offsets = tl.zeros([QUADS, 4], tl.float32)
        sums = tl.zeros([QUADS, 4], tl.float32)
        products = (tl.zeros([QUADS, 4], tl.float32),) * ROWS
        for plane in tl.static_range(PLANES):
            x = planes[plane].to(tl.float32)
            if not EXACT:
                offsets += x * _bias(plane, BITS, HAS_ZEROS)
                sums += x
            more = ()
            for row in tl.static_range(ROWS):
                codes = field(words[row], one_high, one_low, plane, BITS)
                if EXACT:
                    codes -= _bias(plane, BITS, HAS_ZEROS)
                    if HAS_ZEROS:
                        codes -= zeros[row][:, None]
                more += (products[row] + codes * x,)
            products = more
        partials = ()
        for row in tl.static_range(ROWS):
            partial = tl.sum(products[row], 1)
            if not EXACT:
                partial -= tl.sum(offsets, 1)
                if HAS_ZEROS:
                    partial -= zeros[row] * tl.sum(sums, 1)
            partials += (partial * scales[row],)
        acc += side_by_side(partials, ROWS)
    return tl.sum(acc, 0)


@triton.constexpr_function
def _bias(plane: int, bits: int, has_zeros: bool) -> int:
    """What `field` adds to a code, and the code that stands for nothing where no zero point says which."""
    return (16 if bits == 4 and plane % 2 == 1 else 256) + (0 if has_zeros else 1 << (bits - 1))


@triton.jit
def load(pointers, mask, IS_WHOLE: tl.constexpr, POLICY: tl.constexpr):
    if IS_WHOLE:
        return tl.load(pointers, eviction_policy=POLICY)
    return tl.load(pointers, mask=mask, other=0, eviction_policy=POLICY)


@triton.jit
def side_by_side(parts, COUNT: tl.constexpr):
    """COUNT tensors [n], a power of two -> [n, COUNT]."""
    if COUNT == 1:
        beside = parts[0][:, None]
    elif COUNT == 2:
        beside = tl.join(parts[0], parts[1])
    elif COUNT == 4:
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        beside = tl.reshape(pairs, [parts[0].shape[0], 4])
    else:
        even = tl.join(tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6]))
        odd = tl.join(tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7]))
        beside = tl.reshape(tl.join(even, odd), [parts[0].shape[0], 8])
    return beside
