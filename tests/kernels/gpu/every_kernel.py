"""Launches every kernel at small and odd sizes, for tools that watch memory; compares nothing.

`python every_kernel.py PART` runs a part on the GPU and says how long each op took; "wrong" writes where it must not.
Numbers are made on the host and copied, so that PyTorch's own kernels, which such a tool takes seconds to prepare, stay
out of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from salalocal_kernels import HostPages, Planes, SlotPool
from salalocal_kernels.gpu import scaled_linear
from salalocal_kernels.gpu.advance import advance
from salalocal_kernels.gpu.append_token import append_token
from salalocal_kernels.gpu.block_scores import block_scores
from salalocal_kernels.gpu.compress_keys import compress_keys
from salalocal_kernels.gpu.extend_compressed_keys import extend_compressed_keys
from salalocal_kernels.gpu.fetch_blocks import fetch_blocks
from salalocal_kernels.gpu.gather_rows import gather_rows
from salalocal_kernels.gpu.greedy_token import greedy_token
from salalocal_kernels.gpu.kv_codes import pack_pages, unpack_pages
from salalocal_kernels.gpu.lightning_decode import lightning_decode, lightning_step
from salalocal_kernels.gpu.lightning_prefill import lightning_prefill
from salalocal_kernels.gpu.norm_gate import norm_gate
from salalocal_kernels.gpu.packed_linear import packed_linear, packed_silu_mul
from salalocal_kernels.gpu.qk_norm_rope import qk_norm_rope
from salalocal_kernels.gpu.quantize_tokens import quantize_tokens
from salalocal_kernels.gpu.random_uniform import random_uniform
from salalocal_kernels.gpu.rms_norm import add_rms_norm, rms_norm
from salalocal_kernels.gpu.rope_table import rope_table
from salalocal_kernels.gpu.select_blocks import select_blocks
from salalocal_kernels.gpu.silu_mul import silu_mul, silu_mul_codes
from salalocal_kernels.gpu.sparse_attention_decode import sparse_attention_decode
from salalocal_kernels.gpu.sparse_attention_unions import sparse_attention_prefill
from salalocal_kernels.gpu.unpack_planes import plane_codes, plane_steps, plane_values
from salalocal_kernels.gpu.write_token import write_token
from salalocal_kernels.ref import kv_codes as ref_codes

HEADS, KV_HEADS, DIM, BLOCK, STRIDE = 32, 2, 128, 64, 16
LENGTH = 1000
BLOCKS = -(-LENGTH // BLOCK)
HALF = (torch.bfloat16, torch.float32)
CODES = (torch.int8, torch.float8_e4m3fn)


class Ops:
    """The ops, each as a method that launches its kernels in every way that differs in how it addresses memory."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._eights = (torch.int8,) if self._capability() < (8, 9) else (torch.int8, torch.float8_e4m3fn)

    def _capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability() if self.device == "cuda" else (9, 0)

    def put(self, x: Tensor) -> Tensor:
        return x.to(self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return self.put(torch.randn(shape).to(dtype))

    def whole(self, *numbers: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return self.put(torch.tensor(numbers, dtype=dtype))

    def pages(self, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
        """Pages as the cache strides them, as many as there are blocks, and which is which."""
        table = torch.arange(BLOCKS).flip(0)
        return self.normal(KV_HEADS, 2, BLOCKS, BLOCK, DIM, dtype=dtype).permute(2, 0, 1, 3, 4), self.put(table)

    def planes(self, rows: int, columns: int, bits: int, group: int = 128, zeros: bool = False) -> Planes:
        words = torch.randint(-(2**31), 2**31, (rows, columns * bits // 32)).to(torch.int32)
        points = self.put(torch.randint(0, 16, (rows, columns // group)).to(torch.uint8)) if zeros else None
        return Planes(self.put(words), self.normal(rows, columns // group), points, bits, group)

    def levels(self, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """Compressed keys with room for exactly the windows of all tokens."""
        counts = ((LENGTH - 2 * stride) // stride + 1 for stride in (STRIDE, 4 * STRIDE))
        return [self.normal(KV_HEADS, count, DIM, dtype=dtype) for count in counts]

    def picked(self, tokens: int, picks: int = 96) -> Tensor:
        """The last tokens' blocks: all there are, -1 behind them."""
        row = [block if block < BLOCKS else -1 for block in range(picks)]
        return self.put(torch.tensor(row, dtype=torch.int32).expand(KV_HEADS, tokens, -1).contiguous())

    def pool(self, codes: torch.dtype | None = None) -> tuple[HostPages, SlotPool, Tensor, Tensor]:
        """Too few slots for all blocks."""
        slots = KV_HEADS * 8 + 1
        segments = [torch.randn(8, KV_HEADS, 2, BLOCK, DIM).bfloat16() for _ in range(-(-BLOCKS // 8))]
        if codes is not None:
            segments = [ref_codes.pack_pages(each, codes) for each in segments]
        segments = [each.pin_memory() for each in segments] if self.device == "cuda" else segments
        free = self.put(torch.full((slots + 1,), -1, dtype=torch.int32))
        nowhere = self.put(torch.full((KV_HEADS, BLOCKS), -1, dtype=torch.int32))
        stamps = self.put(torch.zeros(slots + 1, dtype=torch.int32))
        pool = SlotPool(
            self.normal(slots, 2, BLOCK, DIM), free, stamps, nowhere, self.whole(0, dtype=torch.int32), self.whole(0, 0)
        )
        table = self.put(torch.zeros(KV_HEADS, BLOCKS, dtype=torch.int64))
        host = HostPages(segments, self.whole(*(each.data_ptr() for each in segments)), True, codes)
        return host, pool, self.put(torch.arange(BLOCKS)), table

    # Attention.

    def append_token(self) -> None:
        (pages, table), (key, value) = self.pages(), self.normal(2, KV_HEADS, DIM)
        for position in (LENGTH - 1, BLOCK * 15, 0):
            append_token(pages, table, *self.levels(), self.whole(position), key, value, STRIDE)
        append_token(pages, table, None, None, LENGTH - 1, key, value, 0)

    def extend_compressed_keys(self) -> None:
        for dtype in HALF:
            extend_compressed_keys(*self.pages(dtype), *self.levels(dtype), 0, LENGTH, STRIDE)
        extend_compressed_keys(*self.pages(), *self.levels(), self.whole(LENGTH - 1), 1, STRIDE)

    def compress_keys(self) -> None:
        compress_keys(self.normal(KV_HEADS, 77, DIM), 2 * STRIDE, STRIDE)

    def block_scores(self) -> None:
        for dtype in HALF:
            for tokens in (1, 37):
                q = self.normal(tokens, HEADS, DIM, dtype=dtype)
                block_scores(q, *self.levels(dtype), LENGTH - tokens, 0.1, STRIDE, BLOCK, BLOCKS)
        q = self.normal(1, HEADS, DIM)
        block_scores(q, *self.levels(), self.whole(LENGTH - 1), 0.1, STRIDE, BLOCK, BLOCKS)

    def select_blocks(self) -> None:
        for tokens, blocks in ((1, 5), (3, 101), (1, 16400), (1, 9001)):
            scores = self.put(torch.rand(KV_HEADS, tokens, blocks))
            select_blocks(scores, BLOCK * blocks - tokens, BLOCK, 1, 32, 96)

    def sparse_attention_prefill(self) -> None:
        for dtype in HALF:
            q, picked = self.normal(37, HEADS, DIM, dtype=dtype), self.picked(37)
            sparse_attention_prefill(q, *self.pages(dtype), picked, LENGTH - 37, 0.1)
            lse = self.put(torch.zeros(37, HEADS))
            out = sparse_attention_prefill(q, *self.pages(dtype), picked, LENGTH - 37, 0.1, lse, None, (0, 9))
            sparse_attention_prefill(q, *self.pages(dtype), picked, LENGTH - 37, 0.1, lse, out, (9, BLOCKS))

    def sparse_attention_decode(self) -> None:
        for dtype in HALF:
            q, mass = self.normal(HEADS, DIM, dtype=dtype), self.put(torch.zeros(KV_HEADS, 96))
            sparse_attention_decode(q, *self.pages(dtype), self.picked(1)[:, 0], self.whole(LENGTH), 0.1, mass)

    def fetch_blocks(self) -> None:
        for codes in (None, *CODES):
            host, pool, table, slot_table = self.pool(codes)
            for first in (0, 5, 8):
                row = torch.arange(first, first + 8, dtype=torch.int32)
                blocks = self.put(row.expand(KV_HEADS, -1).contiguous())
                fetch_blocks(blocks, table, self.whole(LENGTH), host, pool, slot_table)

    def write_token(self) -> None:
        for codes in (None, *CODES):
            host, pool, table, slot_table = self.pool(codes)
            key, value = self.normal(2, KV_HEADS, DIM)
            write_token(key, value, table, slot_table, self.whole(LENGTH - 1), host, pool)

    def kv_codes(self) -> None:
        for codes in CODES:
            for block, dim in ((BLOCK, DIM), (16, 80)):
                pages = self.normal(3, KV_HEADS, 2, block, dim)
                unpack_pages(pack_pages(pages, codes), codes, pages)

    # Linear attention.

    def lightning_prefill(self) -> None:
        for dtype in HALF:
            for tokens in (1, 63, 1100):
                q, k, v = (self.normal(tokens, 8, DIM, dtype=dtype) for _ in range(3))
                slopes, state = self.put(torch.rand(8)), self.normal(8, DIM, DIM, dtype=torch.float32)
                lightning_prefill(q, k, v, slopes, 0.1, state)

    def lightning_step(self) -> None:
        for dtype in HALF:
            q, k, v = self.normal(3, HEADS, DIM, dtype=dtype)
            slopes, state = self.put(torch.rand(HEADS)), self.normal(HEADS, DIM, DIM, dtype=torch.float32)
            lightning_decode(q, k, v, slopes, 0.1, state)
            weight, wide = self.normal(DIM, dtype=dtype), self.normal(HEADS * DIM, dtype=dtype)
            table, arrived = self.put(torch.rand(1, DIM)), self.whole(0, dtype=torch.int32)
            lightning_step(q, k, v, weight, weight, table, slopes, 0.1, state, wide, wide, 1e-6, arrived)

    def qk_norm_rope(self) -> None:
        for kv_heads in (HEADS, KV_HEADS):
            q, k = self.normal(3, HEADS, DIM), self.normal(3, kv_heads, DIM)
            weight, table = self.normal(DIM), self.put(torch.rand(3, DIM))
            qk_norm_rope(q, k, weight, weight, 1e-6, table)
            qk_norm_rope(q, k, weight, weight, 1e-6, table, True)

    def rope_table(self) -> None:
        rope_table(self.whole(1, 70_000, 1 << 20), DIM, 10000.0)

    # Norms and gates.

    def rms_norm(self) -> None:
        for dtype in HALF:
            for rows, columns in ((1, 4096), (3, 4096), (5, 700), (33, DIM)):
                x, branch = self.normal(rows, columns, dtype=torch.float32), self.normal(rows, columns, dtype=dtype)
                weight = self.normal(columns, dtype=dtype)
                add_rms_norm(x, branch, 0.25, weight, 1e-6)
                rms_norm(branch, weight, 1e-6)

    def norm_gate(self) -> None:
        for columns in (HEADS * DIM, 700):
            x, gate, weight = self.normal(3, columns), self.normal(3, columns), self.normal(columns)
            norm_gate(x, weight, gate, 1e-6)
            norm_gate(x, None, gate, 1e-6)

    def silu_mul(self) -> None:
        for columns in (16384, 777):
            gate, up = self.normal(3, columns), self.normal(3, columns)
            silu_mul(gate, up)
            silu_mul(gate, up, self.normal(len(gate), columns + 16)[:, 8:-8])
            for dtype in self._eights:
                silu_mul_codes(gate, up, dtype)

    # Weights.

    def gather_rows(self) -> None:
        codes = torch.randint(-127, 128, (50, 4096), dtype=torch.int8)
        scales = torch.rand(50, 4096 // 128).bfloat16()
        if self.device == "cuda":
            codes, scales = codes.pin_memory(), scales.pin_memory()
        gather_rows(codes, scales, self.whole(0, 49, 50, -1), 12.0, torch.bfloat16)
        gather_rows(self.normal(50, 700), None, self.whole(49), 12.0, torch.bfloat16)

    def packed_linear(self) -> None:
        x = self.normal(2, 4096)
        for group, zeros in ((128, False), (128, True), (64, True)):
            packed_linear(x, [self.planes(rows, 4096, 4, group, zeros) for rows in (4096, 130)])
        packed_linear(x, [self.planes(131, 4096, 8), self.planes(67, 4096, 4)])
        packed_linear(self.normal(1, 768, dtype=torch.float32), [self.planes(5, 768, 4)])
        packed_linear(self.normal(1, 16384), [self.planes(67, 16384, 4)])

    def packed_silu_mul(self) -> None:
        for bits in (4, 8):
            packed_silu_mul(self.normal(1, 4096), self.planes(515, 4096, bits), self.planes(515, 4096, bits))

    def unpack_planes(self) -> None:
        for bits, group, zeros in ((4, 128, False), (4, 64, True), (8, 128, False)):
            matrix = self.planes(13, 768, bits, group, zeros)
            for dtype in HALF:
                plane_values(matrix, dtype)
            plane_steps(matrix, torch.int8)
            for dtype in self._eights:
                plane_codes(matrix, self.put(torch.rand(13)), dtype)

    def scaled_linear(self) -> None:
        for dtype in self._eights:
            for columns in (4096, 768):
                codes, scales = quantize_tokens(self.normal(77, columns), dtype)
                weight, _ = quantize_tokens(self.normal(130, columns), dtype)
                for weight_scales in (self.put(torch.rand(130)), self.normal(130, columns // 128)):
                    scaled_linear.scaled_linear(codes, scales, weight, weight_scales, torch.bfloat16)

    # Choosing a token.

    def choice(self) -> None:
        for count in (73448, 511):
            token = greedy_token(self.put(torch.randn(count)))
        advance(self.whole(3, 5, 7, 11, 6), token.view(1), self.whole(0))
        random_uniform(self.whole(5), self.whole(7))


PARTS = {
    "attention": (
        "append_token", "extend_compressed_keys", "compress_keys", "block_scores", "select_blocks",
        "sparse_attention_prefill", "sparse_attention_decode", "fetch_blocks", "write_token", "kv_codes",
        "lightning_prefill",
    ),
    "weights": (
        "gather_rows", "packed_linear", "packed_silu_mul", "unpack_planes", "scaled_linear", "rms_norm", "norm_gate",
        "silu_mul", "qk_norm_rope", "rope_table", "lightning_step", "choice",
    ),
}  # fmt: skip


def calls(part: str, device: str) -> dict[str, Callable[[], None]]:
    """Op -> what launches it, on "cuda", or on "meta" for tests that only look at launches."""
    ops: Any = Ops(device)
    return {name: getattr(ops, name) for name in PARTS[part]}


def wrong() -> None:
    """Writes a token into a page that is not there: what such a tool has to find."""
    ops = Ops("cuda")
    (pages, _), (key, value) = ops.pages(), ops.normal(2, KV_HEADS, DIM)
    append_token(pages, ops.whole(*[BLOCKS] * BLOCKS), None, None, LENGTH - 1, key, value, 0)


def main(part: str) -> None:
    # cuBLAS is not ours to check, and takes such a tool longer than all the rest.
    scaled_linear._ROWWISE_CAPABILITY = None  # type: ignore[assignment]
    for name, call in {"wrong": wrong}.items() if part == "wrong" else calls(part, "cuda").items():
        begun = perf_counter()
        call()
        torch.cuda.synchronize()
        sys.stdout.write(f"{name}: {perf_counter() - begun:.1f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
