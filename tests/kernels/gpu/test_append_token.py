"""One token into its page and into the windows it completes: interpreted against the definition, compiled, run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from torch import Tensor

from salalocal_kernels.gpu import append_token as gpu
from salalocal_kernels.gpu import early
from salalocal_kernels.ref import append_token as ref

# Position, kernel_stride, tokens of a block: the first token, the last of a fine, of a coarse window and of a block,
# the first of a block, one in the middle, windows of odd sizes over many blocks.
CASES = [(0, 2, 8), (3, 2, 8), (15, 2, 4), (16, 2, 4), (17, 2, 16), (23, 3, 6), (80, 3, 6), (127, 16, 64)]


def memory(position: int, block: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pages of two kv heads as the cache stores them, in no order; what lies at the position and behind is NaN."""
    generator = torch.Generator().manual_seed(position)
    blocks = position // block + 1
    table = torch.randperm(blocks + 2, generator=generator)[:blocks]
    pages = torch.randn(2, 2, blocks + 2, block, dim, generator=generator).to(dtype).permute(2, 0, 1, 3, 4)
    pages[table[-1], :, :, position % block :] = float("nan")
    return pages, table


def cases() -> Iterator[tuple[int, int, Tensor, Tensor, Tensor, Tensor]]:
    for position, stride, block in CASES:
        for dim, dtype in ((8, torch.float32), (5, torch.float32), (16, torch.float16)):
            pages, table = memory(position, block, dim, dtype)
            # Parts of the rows of one product, as the projections hand them out.
            both = torch.randn(4, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
            yield position, stride, pages, table, both[:2], both[2:]


def check_against_the_definition(device: str = "cpu") -> None:
    for position, stride, *tensors in cases():
        pages, table, key, value = (x.to(device) for x in tensors)
        for where in (position, torch.tensor([position], device=device)):
            expected = [pages.clone(), *(torch.full((2, 80, pages.shape[-1]), 9.0).to(pages) for _ in range(2))]
            found = [x.clone() for x in expected]
            ref.append_token(expected[0], table, *expected[1:], position, key, value, stride)
            gpu.append_token(found[0], table, *found[1:], where, key, value, stride)
            assert torch.equal(found[0].nan_to_num(7.0), expected[0].nan_to_num(7.0)), position
            tolerance = 1e-6 if pages.dtype == torch.float32 else 1e-3
            for ours, theirs in zip(found[1:], expected[1:], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
            completed = [bool((x != 9.0).any()) for x in found[1:]]
            windows = [(position + 1) // step > max(1, position // step) for step in (stride, 4 * stride)]
            assert completed == windows, position


def check_without_compressed_keys(device: str = "cpu") -> None:
    for position, _, *tensors in cases():
        pages, table, key, value = (x.to(device) for x in tensors)
        gpu.append_token(pages, table, None, None, torch.tensor([position], device=device), key, value, 0)
        block = pages.shape[3]
        page = pages[int(table[position // block]), :, :, position % block]
        assert torch.equal(page[:, 0], key)
        assert torch.equal(page[:, 1], value)


def test_kernel_in_the_interpreter() -> None:
    run_interpreted(__file__)


def test_by_hand() -> None:
    pages = torch.tensor([[1.0], [3.0], [5.0], [0.0]]).expand(1, 2, 4, 1).clone()[None]
    fine, coarse = torch.zeros(1, 3, 1), torch.zeros(1, 3, 1)
    key, value = torch.tensor([[7.0]]), torch.tensor([[8.0]])
    ref.append_token(pages, torch.tensor([0]), fine, coarse, torch.tensor([3]), key, value, 1)
    assert pages[0, 0, :, 3, 0].tolist() == [7.0, 8.0]
    assert fine.flatten().tolist() == [0.0, 0.0, 6.0], "tokens 2 and 3"
    assert not coarse.any(), "the first coarse window has 8 tokens"


@pytest.mark.parametrize("has_levels", [True, False])
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int, has_levels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "capability", lambda _: capability)
    pages = torch.empty(2, 2, 640, 64, 128, dtype=torch.bfloat16, device="meta").permute(2, 0, 1, 3, 4)
    table, position = (torch.empty(size, dtype=torch.int64, device="meta") for size in (640, 1))
    key, level = pages[0, :, 0, 0], pages[:, :, 0, 0].transpose(0, 1)
    levels = (level, level) if has_levels else (None, None)
    (launch,) = launches(lambda: gpu.append_token(pages, table, *levels, position, key, key, 16))
    found = assert_fits(launch, capability)
    assert ("griddepcontrol.wait" in found.ptx) == (capability >= 90)


@pytest.mark.gpu
def test_on_the_card() -> None:
    check_against_the_definition("cuda")
    check_without_compressed_keys("cuda")


if __name__ == "__main__":
    main(globals())
