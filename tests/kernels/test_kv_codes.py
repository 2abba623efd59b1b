"""Strips of 8-bit codes: by hand, no further from the numbers than their steps, and the same when rounded once more."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from salalocal_kernels import pack_pages, strip_bytes, unpack_pages

CODES = (torch.int8, torch.float8_e4m3fn)
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def there_and_back(pages: Tensor, codes: torch.dtype) -> tuple[Tensor, Tensor]:
    strips, found = pack_pages(pages, codes), torch.empty_like(pages)
    unpack_pages(strips, codes, found)
    return strips, found


def test_by_hand() -> None:
    """One token of 4 channels: key 127, -1, 0.5, 0 and value 0."""
    pages = torch.zeros(1, 1, 2, 1, 4)
    pages[0, 0, 0, 0] = torch.tensor([127.0, -1, 1.6, 0])
    strips, found = there_and_back(pages, torch.int8)
    # 127 in bfloat16 is 0x42FE.
    assert strips.tolist() == [[[127, 255, 2, 0, 0, 0, 0, 0, 0xFE, 0x42, 0, 0]]]
    assert found[0, 0, 0, 0].tolist() == [127, -1, 2, 0]
    assert not found[0, 0, 1].any()
    pages[0, 0, 0, 0] = torch.tensor([448.0, -1.06, 0.001, 17])
    strips, found = there_and_back(pages, torch.float8_e4m3fn)
    assert strips.tolist() == [[[0x7E, 0xB8, 0x01, 0x58, 0, 0, 0, 0, 0xE0, 0x43, 0, 0]]]
    assert found[0, 0, 0, 0].tolist() == [448, -1, 2.0**-9, 16]
    assert strip_bytes(1, 4) == 12
    assert strip_bytes(64, 128) == 16640


@given(st.integers(0, 1 << 20), st.sampled_from(CODES), st.sampled_from(DTYPES))
def test_rounded_once_more_they_stay(seed: int, codes: torch.dtype, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-25, 25, (3, 2, 2, 16, 1), generator=generator)
    pages = (torch.randn(3, 2, 2, 16, 24, generator=generator) * sizes).to(dtype)
    strips, found = there_and_back(pages, codes)
    again, same = there_and_back(found, codes)
    assert torch.equal(again, strips)
    assert torch.equal(same, found)
    largest = pages.abs().amax(-1, keepdim=True)
    step = largest / 254 if codes == torch.int8 else torch.maximum(pages.abs() / 16, largest / 448 / 1024)
    # The largest number is kept in bfloat16, and so is what comes back, maybe.
    assert ((found - pages).abs() <= 1.01 * step + pages.abs() / 128).all()


@pytest.mark.parametrize("codes", CODES)
def test_rows_that_are_nearly_zero_are_zero(codes: torch.dtype) -> None:
    pages = torch.full((1, 1, 2, 2, 8), 2.0**-101)
    pages[0, 0, 1] = 2.0**-100
    _, found = there_and_back(pages, codes)
    assert not found[0, 0, 0].any()
    torch.testing.assert_close(found[0, 0, 1], pages[0, 0, 1], rtol=2e-7, atol=0)


@pytest.mark.parametrize("codes", CODES)
def test_numbers_that_are_none_stay_none(codes: torch.dtype) -> None:
    pages = torch.ones(1, 1, 2, 2, 8)
    pages[0, 0, 0, 0, 3] = float("nan")
    _, found = there_and_back(pages, codes)
    assert found[0, 0, 0, 0].isnan().any()
    assert not found[0, 0, 0, 1].isnan().any()
