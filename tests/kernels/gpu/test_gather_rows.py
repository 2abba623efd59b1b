"""Rows of an embedding table on a GPU, also out of pinned host memory."""

from __future__ import annotations

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from torch import Tensor

from salalocal_kernels.gpu import gather_rows as gpu
from salalocal_kernels.ref import gather_rows as ref


def table_of(rows: int, columns: int, group_size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (rows, columns), generator=generator).to(torch.int8)
    return codes, torch.randn(rows, columns // group_size, generator=generator).bfloat16()


def test_by_hand() -> None:
    table, scales = torch.tensor([[1] * 64, [-127] * 64], dtype=torch.int8), torch.tensor([[3.0], [-0.5]]).bfloat16()
    out = ref.gather_rows(table, scales, torch.tensor([1, 0, 1]), 12.0, torch.bfloat16)
    assert out.dtype == torch.float32
    # 127 * 0.5 = 63.5 is a bfloat16 number
    assert out[:, 5].tolist() == [762.0, 36.0, 762.0]


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_every_kind_of_table() -> None:
    ids = torch.tensor([5, 0, 36, 5, 1])
    for columns, group_size in ((64, 64), (192, 64), (512, 128), (4096, 128), (4224, 128)):
        codes, scales = table_of(37, columns, group_size)
        for dtype in (torch.float16, torch.float32, torch.float64):
            for chosen in (ids, ids[::2], ids[:0]):
                found = gpu.gather_rows(codes, scales, chosen, 12.0, dtype)
                assert torch.equal(found, ref.gather_rows(codes, scales, chosen, 12.0, dtype)), (columns, dtype)
    for table in (torch.randn(9, 77), torch.randn(9, 4100).half(), torch.randn(9, 2, 64)[:, 1]):
        found = gpu.gather_rows(table, None, ids % 9, 0.5, table.dtype)
        assert torch.equal(found, ref.gather_rows(table, None, ids % 9, 0.5, table.dtype))


def check_an_id_outside_the_table_reads_nothing() -> None:
    codes, scales = table_of(4, 64, 64)
    found = gpu.gather_rows(codes, scales, torch.tensor([-1, 3, 4, 2**40]), 1.0, torch.float32)
    assert found.isnan().all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("columns", [4096, 512])
def test_compiles_for_every_card(columns: int) -> None:
    ids = torch.empty(8, dtype=torch.int64, device="meta")
    codes, scales = (part.to("meta") for part in table_of(4, columns, 128))
    (packed,) = launches(lambda: gpu.gather_rows(codes, scales, ids, 12.0, torch.bfloat16))
    (plain,) = launches(lambda: gpu.gather_rows(codes.bfloat16(), None, ids, 12.0, torch.bfloat16))
    for capability in SHARED_BYTES if columns == 4096 else (86, 90):
        found = assert_fits(packed, capability)
        assert columns < 4096 or "ld.global.v4.b32" in found.ptx
    assert_fits(plain, 90)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4097])
@pytest.mark.parametrize("place", ["pinned", "cuda"])
def test_full_size(place: str, tokens: int) -> None:
    codes, scales = table_of(73448, 4096, 128)
    ids = torch.randint(0, 73448, (tokens,))
    ids[-1] = 73447
    for table, steps in ((codes, scales), (codes.bfloat16(), None)):
        held = [None if t is None else t.pin_memory() if place == "pinned" else t.cuda() for t in (table, steps)]
        assert held[0] is not None
        found = gpu.gather_rows(held[0], held[1], ids.cuda(), 12.0, torch.bfloat16)
        assert torch.equal(found.cpu(), ref.gather_rows(table, steps, ids, 12.0, torch.bfloat16))


@pytest.mark.gpu
def test_replayed_in_a_graph_with_other_ids() -> None:
    codes, scales = (part.pin_memory() for part in table_of(1000, 4096, 128))
    ids = torch.tensor([3], device="cuda")
    gpu.gather_rows(codes, scales, ids, 12.0, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = gpu.gather_rows(codes, scales, ids, 12.0, torch.bfloat16)
    for row in (999, 0, 3):
        ids.fill_(row)
        graph.replay()
        assert torch.equal(found.cpu(), ref.gather_rows(codes, scales, torch.tensor([row]), 12.0, torch.bfloat16))


if __name__ == "__main__":
    main(globals())
