"""Dense attention in one call of PyTorch's; it takes tensors of any device."""

from __future__ import annotations

import pytest
import torch

from salalocal_kernels.gpu.dense_attention import dense_attention
from salalocal_kernels.ref.attention import dense_attention as reference


def _errors(device: str, dtype: torch.dtype, first: int, tokens: int, dim: int) -> tuple[float, float]:
    """RMS errors of ours and of the definition in the same dtype, against float64."""
    generator = torch.Generator(device).manual_seed(first + tokens)
    count = -(-(first + tokens) // 64)
    pages = torch.randn(count, 2, 2, 64, dim, generator=generator, device=device).to(dtype)
    q = torch.randn(tokens, 8, dim, generator=generator, device=device).to(dtype)
    exact = reference(q.double(), pages.double(), first, dim**-0.5)
    found = dense_attention(q, pages, first, dim**-0.5)
    assert found.shape == q.shape
    assert found.dtype == dtype
    return tuple(  # type: ignore[return-value]
        float((x.double() - exact).square().mean().sqrt()) for x in (found, reference(q, pages, first, dim**-0.5))
    )


SHAPES = [(0, 1), (0, 63), (0, 200), (70, 1), (100, 29), (64, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("first", "tokens"), SHAPES)
def test_it_is_the_definition(dtype: torch.dtype, first: int, tokens: int) -> None:
    error, allowed = _errors("cpu", dtype, first, tokens, 16)
    assert error <= 2 * allowed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("first", "tokens"), [*SHAPES, (0, 8000), (4096, 4000)])
def test_on_a_gpu(first: int, tokens: int) -> None:
    error, allowed = _errors("cuda", torch.bfloat16, first, tokens, 128)
    assert error <= 2 * allowed
