"""The library beside a training sequence: what it holds, what is read of it, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from salalocal.training.compressed import BLOCK
from salalocal.training.geometry import TINY
from salalocal.training.library import ADDED_SHARE, Asked, Library, replace_asked
from salalocal.training.network import Execution, Network, Supervision

KV_HEADS, GROUP, DIM = 2, 2, 8


def made(batch: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, KV_HEADS * GROUP, tokens, DIM, generator=generator)
    k, v = (torch.randn(batch, KV_HEADS, tokens, DIM, generator=generator) for _ in range(2))
    return q, k, v


def library(blocks: int, picks: int) -> Library:
    return Library(blocks, picks, KV_HEADS, DIM, torch.float32, torch.device("cpu"))


def dense(q: Tensor, k: Tensor, v: Tensor, position: int, head: int) -> Tensor:
    kv = head // GROUP
    weights = torch.softmax(k[kv, : position + 1] @ q[head, position] * DIM**-0.5, 0)
    return weights @ v[kv, : position + 1]


def test_an_empty_library_leaves_attention_as_it_is() -> None:
    q, k, v = made(2, 128, 1)
    asked = Asked(torch.tensor([[100, 127], [64, -1]]), torch.tensor([True, True]))
    read = library(8, 3).attend(q, k, v, asked)
    for row, number, position in ((0, 0, 100), (0, 1, 127), (1, 0, 64)):
        for head in range(KV_HEADS * GROUP):
            expected = dense(q[row], k[row], v[row], position, head)
            assert torch.allclose(read[row, head, number], expected, atol=1e-5)


def test_a_token_reads_the_best_blocks_of_the_documents_before() -> None:
    shelf = library(64, 2)
    _, old_k, old_v = made(3, 512, 2)
    ends = torch.tensor([512, 300, 64])
    shelf.add(old_k, old_v, ends)
    assert int(shelf._is_there.sum()) == min(int(3 * 8 * ADDED_SHARE), 8 + 4 + 1)
    q, k, v = made(2, 128, 3)
    asked = Asked(torch.tensor([[120], [120]]), torch.tensor([True, False]))
    read = shelf.attend(q, k, v, asked)
    for head in range(KV_HEADS * GROUP):
        assert torch.allclose(read[1, head, 0], dense(q[1], k[1], v[1], 120, head), atol=1e-5)
    blocks, is_there = shelf._select(q[:, :, 120:121].view(2, KV_HEADS, GROUP, 1, DIM))
    assert bool(is_there.all())
    for kv in range(KV_HEADS):
        keys = shelf._keys[kv].view(64, -1, DIM)
        heads = q[0, kv * GROUP : (kv + 1) * GROUP, 120]
        best = torch.einsum("gd,ntd->gnt", heads, keys).amax(-1) * DIM**-0.5
        best = best.masked_fill(~shelf._is_there, -torch.inf)
        total = torch.softmax(best, -1).sum(0)
        assert blocks[0, kv, 0].tolist() == torch.topk(total, 2).indices.tolist()
        pages = shelf._pages[kv, blocks[0, kv, 0]]
        for head in range(kv * GROUP, (kv + 1) * GROUP):
            all_k = torch.cat([k[0, kv, :121], pages[:, 0].reshape(-1, DIM)])
            all_v = torch.cat([v[0, kv, :121], pages[:, 1].reshape(-1, DIM)])
            weights = torch.softmax(all_k @ q[0, head, 120] * DIM**-0.5, 0)
            assert torch.allclose(read[0, head, 0], weights @ all_v, atol=1e-5)


def test_the_oldest_blocks_make_room() -> None:
    shelf = library(6, 2)
    for seed in range(5):
        _, k, v = made(1, 512, seed)
        shelf.add(k, v, torch.tensor([512]))
    assert bool(shelf._is_there.all())
    last = made(1, 512, 4)[1].view(KV_HEADS, 8, BLOCK, DIM)[0]
    held = shelf._pages[0, :, 0]
    assert sum(any(torch.equal(block, page) for page in held) for block in last) == 4


def test_only_the_asked_tokens_change() -> None:
    mixed, read = torch.zeros(1, 2, 10, 3), torch.ones(1, 2, 2, 3)
    changed = replace_asked(mixed, read, Asked(torch.tensor([[7, -1]]), torch.tensor([True])))
    assert changed.nonzero()[:, 2].unique().tolist() == [7]


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_network_learns_beside_its_libraries(mode: str) -> None:
    network = Network(TINY, Execution(window=64, picks=2))
    network.open_libraries(16, 4)
    ids = torch.randint(0, TINY.vocab_size, (2, 257), generator=torch.Generator().manual_seed(5))
    nothing = torch.full((2, 1), -1)
    losses = []
    for _ in range(2):
        supervision = Supervision(
            nothing, nothing, torch.tensor([192, 192]), torch.tensor(0.0), torch.zeros(2, 256),
            Asked(torch.tensor([[200, 250], [210, -1]]), torch.tensor([True, True])),
        )  # fmt: skip
        entropy = network(ids[:, :-1], ids[:, 1:], mode, supervision)[0]
        losses.append(entropy.detach())
        entropy.mean().backward()
    # The second time the library holds blocks, and what follows the asked tokens comes out otherwise.
    assert torch.equal(losses[0][:, :200], losses[1][:, :200])
    assert not torch.equal(losses[0][:, 200:], losses[1][:, 200:])
    assert all(parameter.grad is not None for parameter in network.parameters())
