"""How often kernels are compiled while a long text is read: not for every number of tokens or blocks there is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from triton_gate import launches, version

from salalocal.model.sparse_layer import tile_tokens
from salalocal_kernels.gpu import target
from salalocal_kernels.gpu.block_scores import block_scores
from salalocal_kernels.gpu.select_blocks import select_blocks
from salalocal_kernels.gpu.sparse_attention_unions import sparse_attention_prefill

META = torch.device("meta")
CHUNK, PICKS, BUFFER_BLOCKS = 8192, 96, 1999


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def read_chunk(start: int, stop: int) -> None:
    """Scores, selection and attention of the released model's chunk, its history in buffers of BUFFER_BLOCKS."""
    tokens, blocks = stop - start, -(-stop // 64)
    q, tile = empty(tokens, 32, 128), tile_tokens(blocks)
    for first in range(start, stop, tile):
        end = min(first + tile, stop)
        fine, coarse = (empty(2, blocks * 8, 128)[:, : end // stride - 1] for stride in (16, 64))
        scores = block_scores(q[: end - first], fine, coarse, first, 0.1, 16, 64, -(-end // 64))
        select_blocks(scores, first, 64, 1, 32, PICKS)
    picks, table = empty(2, tokens, PICKS, dtype=torch.int32), empty(blocks, dtype=torch.int64)
    own = max(0, start // 64 - 1)
    edges = [*range(0, own, BUFFER_BLOCKS), own, blocks]
    out, lse = None, empty(tokens, 32, dtype=torch.float32)
    for span in pairwise(edges):
        pages = empty(2100, 2, 2, 64, 128)
        out = sparse_attention_prefill(q, pages, table, picks, start, 0.1, lse, out, span)


def versions(chunks: Iterable[tuple[int, int]]) -> dict[str, int]:
    found: dict[str, set[str]] = defaultdict(set)
    with mock.patch.object(target, "_ELSEWHERE", (90, 132)):
        for start, stop in chunks:
            for launch in launches(lambda start=start, stop=stop: read_chunk(start, stop)):
                types, constants, aligned = version(launch)
                found[launch.kernel.fn.__name__].add(f"{types} {constants} {sorted(aligned)}")
    return {name: len(of) for name, of in found.items()}


def test_a_million_tokens_and_an_odd_end() -> None:
    ends = [*range(0, 1 << 20, CHUNK), (1 << 20) - 77]
    found = versions(pairwise(ends[1:]))
    assert found["_coarse_lse_kernel"] == 1
    assert found["_union_blocks_kernel"] == 1
    assert found["_sparse_attention_kernel"] == 2, "the first piece, and those that go on with its sum"
    assert found["_block_scores_kernel"] <= 8
    # A row's scores are read sixteen bytes at a time where there are sixteen times as many blocks.
    assert found["_select_blocks_kernel"] <= 32
