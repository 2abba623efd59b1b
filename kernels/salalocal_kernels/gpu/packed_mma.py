"""Rows of a matrix of 4 bits times one bfloat16 vector on tensor cores. Knows no launcher.

A product with one vector leaves tensor cores idle, so waste there is free. What is gained: they multiply pairs of
bfloat16, which two codes become by a logic operation and at most a shift, and they add in float32 across four lanes.

`mma.m16n8k16` computes A [16, 16] times B [16, 8]. Lane 4 i + t holds of A parts of rows i and i + 8, and of B a part
of column i: the same lane, the same i. So row i of A is given not a row of the matrix but what the four lanes of
quartet i hold of one, row i + 8 the same of a second one, and column i of B the part of the vector that these lanes
need. Every lane multiplies what it loaded; nothing moves. The two products are in places (i, i) and (i + 8, i) of the
result; the rest is one quartet's codes times another's activations and is dropped. A quartet holds 64 bytes of a row: a
group of 128.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from salalocal_kernels.gpu.early import wait
from salalocal_kernels.gpu.packed_dot import load
from salalocal_kernels.gpu.target import INTERPRETED

# 128.0 twice: codes become the last bits of its mantissa. A kernel gets it as an argument, as ONE_HIGH.
ONES_BFLOAT16 = 0x43004300
_INTERPRETED = tl.constexpr(INTERPRETED)
GROUP_OF_QUARTET = 128
# Every lane of a quartet has the sums of one of four rows in the end.
FEWEST_ROWS = 4
_LANES = tl.constexpr(32)


@dataclass(frozen=True)
class Mma:
    """How the kernel goes about it; the compiler sees constants.

    Attributes:
        ahead: a program sends for the words of the program so many further on, as far as the L2 cache, or where its own
            rows take several steps for those of the next step; 0 for neither. Early programs thereby send for what
            later ones, for which there is no room yet, will need. Capability 9.0.
        reach: with more than 1 the first `ahead` programs send for the words of so many at that distance each, and the
            others for none: programs for which there is room while the launch before ends then send for all.
        policy: how words pass through caches.
        is_full: ROWS divides the matrix.
    """

    ahead: int = 0
    reach: int = 1
    policy: str = "evict_first"
    is_full: bool = False


@triton.jit
def mma_rows(
    words_ptrs, scales_ptrs, zeros_ptrs, x_ptr, first_row, rows_total, ones,
    HAS_ZEROS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr, STAGES: tl.constexpr,
    IS_EARLY: tl.constexpr, MMA: tl.constexpr,
):  # fmt: skip
    """What `dot_rows` returns, for 4 bits in groups of 128, bfloat16 x, QUADS of whole warps and ROWS of 4, 8 or 16.

    With several matrices of one shape, whose pointers are tuples, [matrices x ROWS]: those of the first, of the second.
    """
    # Named one by one: Triton 3.6 takes a field of a constant for a plain value.
    POLICY: tl.constexpr = MMA.policy
    AHEAD: tl.constexpr = MMA.ahead
    REACH: tl.constexpr = MMA.reach
    IS_FULL: tl.constexpr = MMA.is_full
    GROUP: tl.constexpr = 128
    SPAN: tl.constexpr = GROUP // 8
    QUADS_PER_GROUP: tl.constexpr = 4
    ALL_QUADS: tl.constexpr = COLUMNS // 32
    GROUPS: tl.constexpr = COLUMNS // GROUP
    IS_WHOLE: tl.constexpr = ALL_QUADS % QUADS == 0
    COUNT: tl.constexpr = len(words_ptrs) * ROWS
    last_row = (rows_total - 1 - first_row).to(tl.int32)
    wide_row = first_row.to(tl.int64)
    column = tl.arange(0, 4)[None, :]
    lane = tl.arange(0, QUADS) % _LANES
    quartet = lane // 4
    member = lane % 4
    # Of a quartet's four lanes one is left with the results of two rows, each in the first or second place of a pair.
    has_result = member == quartet // 2
    is_second = quartet % 2 == 1
    nothing = tl.zeros([QUADS], tl.float32)
    one = tl.full([QUADS], 0x3F803F80, tl.int32)
    acc = (nothing,) * (COUNT // 4)
    for start in tl.range(0, ALL_QUADS, QUADS, num_stages=STAGES):
        quads = start + tl.arange(0, QUADS)
        inside = quads < ALL_QUADS
        each = inside[:, None]
        at_words = quads[:, None] * 4 + column
        at_groups = quads // QUADS_PER_GROUP
        at_x = (at_groups * GROUP + quads % QUADS_PER_GROUP * 4)[:, None] + column
        if AHEAD > 0:
            for index in tl.static_range(len(words_ptrs)):
                words_ptr = words_ptrs[index] + wide_row * (ALL_QUADS * 4)
                if ALL_QUADS > QUADS:
                    if start + QUADS < ALL_QUADS and first_row + ROWS <= rows_total:
                        _prefetch(words_ptr + (start + QUADS) * 4, ROWS, ALL_QUADS * 16, QUADS * 16)
                elif REACH == 1 or first_row < AHEAD * ROWS:
                    for distance in tl.static_range(AHEAD, AHEAD * (REACH + 1), AHEAD):
                        if first_row + (distance + 1) * ROWS <= rows_total:
                            _prefetch(words_ptr + distance * (ROWS * ALL_QUADS * 4), 1, 0, ROWS * ALL_QUADS * 16)
        words = ()
        scales = ()
        zeros = ()
        for index in tl.static_range(COUNT):
            words_ptr = words_ptrs[index // ROWS] + wide_row * (ALL_QUADS * 4)
            own = index % ROWS if IS_FULL else tl.minimum(index % ROWS, last_row)
            words += (load(words_ptr + own * (ALL_QUADS * 4) + at_words, each, IS_WHOLE, POLICY),)
        for index in tl.static_range(0, COUNT, 4):
            own = index % ROWS + member
            at_scales = wide_row * GROUPS + (own if IS_FULL else tl.minimum(own, last_row)) * GROUPS + at_groups
            scales += (load(scales_ptrs[index // ROWS] + at_scales, inside, IS_WHOLE, "").to(tl.float32),)
            if HAS_ZEROS:
                zeros += (load(zeros_ptrs[index // ROWS] + at_scales, inside, IS_WHOLE, "").to(tl.float32),)
        wait(IS_EARLY)
        pairs = ()
        for plane in tl.static_range(4):
            low = load(x_ptr + at_x + plane * SPAN, each, IS_WHOLE, "")
            high = load(x_ptr + at_x + (plane + 4) * SPAN, each, IS_WHOLE, "")
            pairs += (_columns(_pair(low, high)),)
        columns = ()
        for row in tl.static_range(COUNT):
            columns += (_columns(words[row]),)
        ones_sums = (nothing, nothing, nothing, nothing)
        all_sums = (ones_sums,) * (COUNT // 2)
        for word in tl.static_range(4):
            for half in tl.static_range(2):
                b = (pairs[2 * half][word], pairs[2 * half + 1][word])
                ones_sums = _mma(one, one, one, one, b[0], b[1], ones_sums)
                new = ()
                for pair in tl.static_range(COUNT // 2):
                    mine, other = columns[2 * pair][word], columns[2 * pair + 1][word]
                    new += (_add_codes(mine, other, ones, b, all_sums[pair], 2 * half),)
                all_sums = new
        total = tl.where(has_result, tl.where(is_second, ones_sums[1], ones_sums[0]), 0.0)
        total += _from_lane(total, 1)
        total += _from_lane(total, 2)
        products = ()
        for pair in tl.static_range(COUNT // 2):
            sums = all_sums[pair]
            products += (tl.where(has_result, tl.where(is_second, sums[1], sums[0]), 0.0),)
            products += (tl.where(has_result, tl.where(is_second, sums[3], sums[2]), 0.0),)
        # Every lane of a quartet goes on with a quarter of the rows.
        products = _halved(_halved(products, lane, 1), lane, 2)
        more = ()
        for index in tl.static_range(COUNT // 4):
            middle = 128 + (zeros[index] if HAS_ZEROS else 8)
            more += (acc[index] + (products[index] - middle * total) * scales[index],)
        acc = more
    if COUNT > 4:
        acc = _halved(acc, lane, 4)
    if COUNT > 8:
        acc = _halved(acc, lane, 8)
    return tl.sum(tl.reshape(acc[0], [QUADS // COUNT, COUNT]), 0)


@triton.jit
def _halved(parts, lane, DISTANCE: tl.constexpr):
    """Half as many tensors [n]: a lane keeps one of each two, to which it adds what the lane DISTANCE away gives away.

    8 rows thereby take 9 exchanges in a warp, where summing each by itself takes 40.
    """
    found = ()
    for index in tl.static_range(0, len(parts), 2):
        keeps_second = (lane & DISTANCE) != 0
        kept = tl.where(keeps_second, parts[index + 1], parts[index])
        given = tl.where(keeps_second, parts[index], parts[index + 1])
        found += (kept + _from_lane(given, DISTANCE),)
    return found


@triton.jit
def _from_lane(value, DISTANCE: tl.constexpr):
    """Of the lane whose number differs in the bit DISTANCE."""
    if _INTERPRETED:
        blocks = tl.reshape(value, [value.shape[0] // (2 * DISTANCE), 2, DISTANCE])
        both = tl.broadcast_to(tl.sum(blocks, 1)[:, None, :], blocks.shape)
        return tl.reshape(both, value.shape) - value
    return tl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "=f,f,n", [value, DISTANCE],
        dtype=tl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _add_codes(mine, other, ones, b, sums, PLANE: tl.constexpr):
    """Planes PLANE and PLANE + 1, each with the plane 4 further on, of words of two rows, times b."""
    a0 = _codes(mine, ones, PLANE)
    a1 = _codes(other, ones, PLANE)
    a2 = _codes(mine, ones, PLANE + 1)
    a3 = _codes(other, ones, PLANE + 1)
    return _mma(a0, a1, a2, a3, b[0], b[1], sums)


@triton.jit
def _codes(words, ones, PLANE: tl.constexpr):
    """Planes PLANE and PLANE + 4 as pairs of bfloat16; 128 is added to each."""
    moved = words if PLANE == 0 else words >> (4 * PLANE)
    return (moved & 0x000F000F) | ones


@triton.jit
def _prefetch(pointer, ROWS: tl.constexpr, STRIDE: tl.constexpr, BYTES: tl.constexpr):
    """Asks for BYTES of each of so many rows as far as the L2 cache, a thread for each; from capability 9.0."""
    if ROWS == 1 and not _INTERPRETED:
        tl.inline_asm_elementwise(
            "{ .reg .pred is_first; .reg .b32 thread; mov.u32 thread, %tid.x; setp.eq.u32 is_first, thread, 0; "
            "@is_first cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
            "=r,l,n", [pointer.to(tl.int64), BYTES], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    elif not _INTERPRETED:
        tl.inline_asm_elementwise(
            "{ .reg .pred has_row; .reg .b32 row; .reg .b64 address; mov.u32 row, %tid.x; "
            "setp.lt.u32 has_row, row, $2; mad.wide.u32 address, row, $3, $1; "
            "@has_row cp.async.bulk.prefetch.L2.global [address], $4; mov.u32 $0, 0; }",
            "=r,l,n,n,n", [pointer.to(tl.int64), ROWS, STRIDE, BYTES], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _pair(low, high):
    """Two tensors of 16 bits, neighbours in a thread's registers -> one of 32."""
    if _INTERPRETED:
        low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
        high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
        return (low | (high << 16)).to(tl.int32, bitcast=True)
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $3, 0x5410; prmt.b32 $1, $2, $3, 0x7632;", "=r,=r,r,r", [low, high],
        dtype=tl.int32, is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def _columns(block):
    """[n, 4] -> four tensors [n]."""
    even, odd = tl.split(tl.reshape(block, [block.shape[0], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _mma(a0, a1, a2, a3, b0, b1, sums):
    """Every lane's own pairs of two rows (a0, a2 and a1, a3) times its own of x (b0, b1), plus `sums`; see above."""
    if _INTERPRETED:
        first = tl.reshape(_dot(a0, b0) + _dot(a2, b1), [a0.shape[0] // 4, 4])
        second = tl.reshape(_dot(a1, b0) + _dot(a3, b1), [a0.shape[0] // 4, 4])
        first = tl.reshape(tl.broadcast_to(tl.sum(first, 1)[:, None], first.shape), a0.shape)
        second = tl.reshape(tl.broadcast_to(tl.sum(second, 1)[:, None], second.shape), a0.shape)
        return sums[0] + first, sums[1] + first, sums[2] + second, sums[3] + second
    return tl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=False,
        pack=1,
    )


@triton.jit
def _dot(a, b):
    """Pairs of bfloat16 in 32 bits: their product, in float32."""
    low = (a << 16).to(tl.float32, bitcast=True) * (b << 16).to(tl.float32, bitcast=True)
    return low + (a & -65536).to(tl.float32, bitcast=True) * (b & -65536).to(tl.float32, bitcast=True)
