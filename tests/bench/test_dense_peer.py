"""The dense peer at a small size, beside the same model written out token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from salalocal.bench import dense_peer
from salalocal.bench.dense_peer import DensePeer, DenseShape, attend

CPU = torch.device("cpu")
SHAPE = DenseShape(layers=3, hidden=48, heads=6, kv_heads=2, head_dim=8, feed_forward=80, vocab=97)
IDS = torch.randint(97, (37,), generator=torch.Generator().manual_seed(3))


def normed(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + SHAPE.eps).sqrt()


def turned(x: Tensor, position: int) -> Tensor:
    """[D] of one head: the numbers j and j + D / 2 are the two parts of a complex one."""
    half = len(x) // 2
    angles = torch.tensor([position * SHAPE.rope_theta ** (-j / half) for j in range(half)], dtype=x.dtype)
    complex_x = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([complex_x.real, complex_x.imag])


def naive(peer: DensePeer, ids: list[int]) -> Tensor:
    dim, heads, kv_heads = SHAPE.head_dim, SHAPE.heads, SHAPE.kv_heads
    rows = [peer.embedding[token].clone() for token in ids]
    for layer in peer.layers:
        keys: list[list[Tensor]] = []
        values: list[list[Tensor]] = []
        for position, x in enumerate(rows):
            parts = (layer.qkv @ normed(x)).split(dim)
            queries = [turned(normed(part), position) for part in parts[:heads]]
            keys.append([turned(normed(part), position) for part in parts[heads : heads + kv_heads]])
            values.append(list(parts[heads + kv_heads :]))
            out = []
            for head, q in enumerate(queries):
                group = head // (heads // kv_heads)
                weights = torch.stack([q @ k[group] / math.sqrt(dim) for k in keys]).softmax(0)
                out.append(sum(w * v[group] for w, v in zip(weights, values, strict=True)))
            x = x + layer.o_proj @ torch.cat(out)
            gate, up = (layer.gate_up @ normed(x)).chunk(2)
            rows[position] = x + layer.down @ (gate * gate.sigmoid() * up)
    return peer.head @ normed(rows[-1])


@pytest.mark.parametrize("slice_tokens", [1 << 14, 10])
@pytest.mark.parametrize("backend", ["math", "flash"])
def test_it_is_the_model_written_out(
    backend: dense_peer.Backend, slice_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_peer, "_SLICE_TOKENS", slice_tokens)
    peer = DensePeer(SHAPE, torch.float64, CPU)
    found = peer.read(IDS, backend)
    assert (found.shape, found.dtype) == ((97,), torch.float32)
    torch.testing.assert_close(found.double(), naive(peer, IDS.tolist()), rtol=1e-4, atol=1e-5)
    assert [tuple(part.shape) for pair in peer.kv for part in pair] == [(37, 2, 8)] * 6


def test_a_prompt_is_read_anew() -> None:
    peer = DensePeer(SHAPE, torch.float64, CPU)
    first = peer.read(IDS, "math")
    peer.read(IDS[:5], "math")
    assert torch.equal(peer.read(IDS, "math"), first)
    assert len(peer.kv) == SHAPE.layers


def test_without_memory_for_keys_and_values_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = DensePeer(SHAPE, torch.float64, CPU)
    peer.read(IDS, "math")
    empty, left = torch.empty, [4]

    def scarce(*shape: int, **options: object) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError
        return empty(*shape, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "empty", scarce)
    monkeypatch.setattr(dense_peer, "attend", None)
    with pytest.raises(torch.OutOfMemoryError):
        peer.read(torch.cat([IDS, IDS]), "math")
    assert peer.kv == peer._room == []


def test_heads_in_groups_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend without grouped heads is given every head its own."""
    q, k, v = (torch.randn(20, heads, 8, dtype=torch.float64) for heads in (6, 2, 2))
    expected = attend(q, k, v, "math")
    real = torch.nn.functional.scaled_dot_product_attention

    def without_groups(*rows: Tensor, is_causal: bool, enable_gqa: bool = False) -> Tensor:
        if enable_gqa:
            raise RuntimeError("No available kernel. Aborting execution.")
        return real(*rows, is_causal=is_causal)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", without_groups)
    torch.testing.assert_close(attend(q, k, v, "math"), expected)


def test_out_of_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def full(*rows: Tensor, is_causal: bool, enable_gqa: bool = False) -> Tensor:
        del rows, is_causal
        calls.append(enable_gqa)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        attend(*(torch.zeros(4, 2, 8) for _ in range(3)), "math")
    assert calls == [True]


def test_sizes() -> None:
    """Qwen3-8B: 8.19 B parameters, 144 KiB of K/V per token in bfloat16."""
    assert DenseShape().matrices == pytest.approx(8.19e9, rel=1e-3)
    assert DenseShape().kv_bytes(1, 2) == 144 << 10
    peer = DensePeer(SHAPE, torch.float64, CPU)
    matrices = [peer.embedding, peer.head]
    for layer in peer.layers:
        matrices += [layer.qkv, layer.o_proj, layer.gate_up, layer.down]
    assert sum(matrix.numel() for matrix in matrices) == SHAPE.matrices
