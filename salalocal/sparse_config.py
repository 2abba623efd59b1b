"""Which blocks a sparse layer may read: the sizes of InfLLM-V2, checked. Knows no torch and no network."""

from __future__ import annotations

from dataclasses import dataclass

from salalocal.fields import Fields


@dataclass(frozen=True)
class SparseConfig:
    """Block selection of InfLLM-V2; lengths in tokens. Source: MiniCPM4 report, section on InfLLM-V2.

    Attributes:
        kernel_size: tokens averaged into one fine compressed key; always 2 x kernel_stride.
        kernel_stride: distance of fine compressed keys; coarse ones use 4 x stride and 4 x kernel.
        init_blocks: blocks at the start that every query reads.
        block_size: tokens per block.
        window_size: local window; window_size / block_size blocks before the query's own are always read.
        topk: blocks beyond the window, the initial ones counted in.
        dense_len: total length from which a call is sparse.
    """

    kernel_size: int
    kernel_stride: int
    init_blocks: int
    block_size: int
    window_size: int
    topk: int
    dense_len: int

    @property
    def local_blocks(self) -> int:
        """Blocks of the window, the query's own not counted."""
        return self.window_size // self.block_size

    @property
    def selected_blocks(self) -> int:
        """Blocks one query reads at most (96 in the released model)."""
        return self.topk + self.local_blocks

    @staticmethod
    def parse(fields: Fields) -> SparseConfig:
        """Reads `sparse_config`; raises BadConfig naming the field."""
        stride = fields.integer("kernel_stride", 1, 1 << 16)
        kernel = fields.integer("kernel_size", 1, 1 << 17)
        if kernel != 2 * stride:
            fields.fail("kernel_size", f"is {kernel}, InfLLM-V2 needs twice kernel_stride, {2 * stride}")
        block = fields.integer("block_size", 1, 1 << 16)
        if block % stride:
            fields.fail("block_size", f"is {block}, not a multiple of kernel_stride {stride}")
        window = fields.integer("window_size", 0, 1 << 24)
        if window % block:
            fields.fail("window_size", f"is {window}, not a multiple of block_size {block}")
        init = fields.integer("init_blocks", 0, 1 << 16)
        topk = fields.integer("topk", 1, 1 << 20)
        if topk < init + 1:
            fields.fail("topk", f"is {topk}, at least init_blocks + 1 = {init + 1} are needed")
        if fields.boolean("use_nope", default=False):
            fields.fail("use_nope", "is true, which no released model uses and we do not implement")
        return SparseConfig(
            kernel_size=kernel,
            kernel_stride=stride,
            init_blocks=init,
            block_size=block,
            window_size=window,
            topk=topk,
            dense_len=fields.integer("dense_len", 0, 1 << 40),
        )
