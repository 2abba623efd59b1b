"""Pages to strips of 8-bit codes and back by kernels, bit for bit."""

from __future__ import annotations

import pytest
import torch
from gpu.triton_gate import SHARED_BYTES, assert_fits, launches, main, run_interpreted
from torch import Tensor

from salalocal_kernels import strip_bytes
from salalocal_kernels.gpu import kv_codes as gpu
from salalocal_kernels.ref import kv_codes as ref

CODES = (torch.int8, torch.float8_e4m3fn)


def pages_of(count: int, block: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Rows of all sizes, some of zeros, and many numbers halfway between two codes."""
    generator = torch.Generator().manual_seed(dim + block)
    pages = torch.randn(count, 2, 2, block, dim, generator=generator)
    pages[:, 0] *= 10.0 ** torch.randint(-4, 4, (count, 2, block, 1), generator=generator)
    pages[:, 1, 0] = torch.randint(-254, 255, (count, block, dim), generator=generator) / 2
    pages[:, 1, 0, :, 0] = 127
    pages[:, 1, 1, ::3] = 0
    pages[:, 1, 1, 1] = 2.0**-101
    return pages.to(device, dtype)


def assert_alike(pages: Tensor) -> None:
    for codes in CODES:
        strips, expected = gpu.pack_pages(pages, codes), ref.pack_pages(pages, codes)
        assert torch.equal(strips, expected)
        found, values = torch.empty_like(pages), torch.empty_like(pages)
        gpu.unpack_pages(expected, codes, found)
        ref.unpack_pages(expected, codes, values)
        assert torch.equal(found, values)


def test_kernels_in_the_interpreter() -> None:
    run_interpreted(__file__)


def check_sizes_and_dtypes() -> None:
    for count, block, dim in ((3, 16, 8), (2, 64, 128), (1, 128, 80), (5, 32, 16), (0, 16, 16)):
        for dtype in (torch.float32, torch.float16):
            assert_alike(pages_of(count, block, dim, dtype))


def check_every_code() -> None:
    """All numbers that e4m3 has, all halfway between two of them, and those beside."""
    numbers = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = (numbers[1:] + numbers[:-1]) / 2
    beside = [torch.nextafter(halfway, torch.tensor(to)) for to in (0.0, 1e9)]
    line = torch.cat([numbers, halfway, *beside])
    line = torch.nn.functional.pad(torch.cat([line, -line]), (0, 1024 - 2 * len(line)))
    pages = line.view(2, 2, 2, 16, 8).clone()
    pages[..., 7] = 448
    assert_alike(pages)


@pytest.mark.parametrize("codes", CODES, ids=str)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_for_every_card(capability: int, codes: torch.dtype) -> None:
    pages = torch.empty(512, 2, 2, 64, 128, dtype=torch.bfloat16, device="meta")
    strips = torch.empty(512, 2, strip_bytes(64, 128), dtype=torch.uint8, device="meta")
    (pack,) = launches(lambda: gpu.pack_pages(pages, codes))
    assert_fits(pack, capability)
    (unpack,) = launches(lambda: gpu.unpack_pages(strips, codes, pages))
    found = assert_fits(unpack, capability)
    assert "ld.global.v4.b32" in found.ptx
    assert "st.global.v4.b32" in found.ptx


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_on_the_gpu(dtype: torch.dtype) -> None:
    for count, block, dim in ((300, 64, 128), (3, 16, 8), (2, 128, 80)):
        assert_alike(pages_of(count, block, dim, dtype, "cuda"))


if __name__ == "__main__":
    main(globals())
