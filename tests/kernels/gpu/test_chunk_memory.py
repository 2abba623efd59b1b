"""What a chunk's tensors take at once on a GPU, counted on the meta device, against what the planner says."""

from __future__ import annotations

import weakref
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from meta_network import META, empty, network
from triton.runtime.jit import JITFunction
from triton_gate import launches

from salalocal import choices, planner
from salalocal.bench.made_model import make_history
from salalocal.cache.attention_cache import ResidentAttention
from salalocal.cache.attention_memory import Piece
from salalocal.cache.session_cache import SessionCache
from salalocal.model.narrow import NARROW_DTYPES, narrowed, why_not
from salalocal.model.network import Network
from salalocal_kernels import coverage, dispatch
from salalocal_quant import planes_weight
from salalocal_quant.packed import SCRATCH_BYTES

MILLION = 1 << 20


# Smaller tensors are elsewhere.
LARGE_BYTES = 1 << 20


class Living(TorchDispatchMode):
    """Bytes of the tensors that were made in the block and are there, and the most there were at once.

    Attributes:
        extent: bytes from the first to the last of them, each being placed in the smallest gap that it fits, as
            PyTorch does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = self.peak = self.extent = 0
        self._placed: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in given:
                storage = made.untyped_storage()
                self.nbytes += storage.nbytes()
                self.peak = max(self.peak, self.nbytes)
                weakref.finalize(storage, self._let_go, storage.nbytes(), self._place(storage.nbytes()))
        return out

    def _place(self, nbytes: int) -> tuple[int, int]:
        if nbytes < LARGE_BYTES:
            return -1, -1
        ends = [0, *(stop for _, stop in self._placed)]
        starts = [*(start for start, _ in self._placed), max(ends[-1], self.extent)]
        gaps = [(stop - start, start) for start, stop in zip(ends, starts, strict=True) if stop - start >= nbytes]
        at = min(gaps)[1] if gaps else ends[-1]
        insort(self._placed, (at, at + nbytes))
        self.extent = max(self.extent, at + nbytes)
        return at, at + nbytes

    def _let_go(self, nbytes: int, place: tuple[int, int]) -> None:
        self.nbytes -= nbytes
        if place in self._placed:
            self._placed.remove(place)


def two_pieces(self: ResidentAttention, blocks: Tensor) -> Iterator[Piece]:
    """As a history comes from host memory."""
    del blocks
    pages, table = self._kv.pages(self._index), self._kv.page_table
    half = len(table) // 2
    for first, stop in ((0, half), (half, len(table))):
        yield Piece(pages, table, first, stop, is_whole=False)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_device_type", lambda _: "cuda")
    monkeypatch.setattr(coverage, "_capability", lambda _: (9, 0))
    monkeypatch.setattr(ResidentAttention, "pieces", two_pieces)
    monkeypatch.setattr(planes_weight, "_scratch", {})
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])


def read_chunks(made: Network, tokens: int, starts: Sequence[int]) -> Living:
    """What there is of chunks after each other; K, V, compressed keys and states not counted."""
    cache = SessionCache.empty(made.config, torch.bfloat16, META)
    cache.prepare_step(MILLION, MILLION)
    cache.extend(MILLION)
    ids = empty(tokens, dtype=torch.int64)

    def launch(*_: object, **__: object) -> None:
        """Nothing, and keeps nothing."""

    with mock.patch.object(JITFunction, "run", launch), Living() as living:
        for cache.length in starts:
            made.read(ids, cache, True, None)
    return living


def lean(made: Network, tokens: int, prefill: str) -> tuple[Network, int]:
    """The network as a capped card has it, and the bytes planned for a chunk's tensors."""
    packed = choices.packed(made.config, "int4")
    assert packed is not None
    sizes = planner.footprint(packed, 2, tokens, is_lean=True, is_narrow=prefill != "full")
    layers = [
        replace(layer, feed_forward=replace(layer.feed_forward, channels=sizes.feed_channels)) for layer in made.layers
    ]
    return replace(made, layers=tuple(layers)), sizes.workspace_bytes


def counted(tokens: int, prefill: str) -> tuple[Network, int, int]:
    """A lean network to count on, what is planned for its chunks, and the part of that which is for gaps and for what
    PyTorch and cuBLAS take themselves."""
    made, planned = lean(network(), tokens, prefill)
    if prefill == "full":
        return made, planned, planner._LEAN_SPARE_BYTES
    narrow: list[Network] = []
    launches(lambda: narrow.append(narrowed(made, prefill)))
    return narrow[0], planned, planner._NARROW_SPARE_BYTES


@pytest.mark.parametrize("prefill", ["full", *NARROW_DTYPES])
@pytest.mark.parametrize("tokens", [8192, 4096, 2048, 1000])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_lean_chunk(tokens: int, prefill: str) -> None:
    made, planned, spare = counted(tokens, prefill)
    living = read_chunks(made, tokens, [MILLION - tokens])
    assert -32 << 20 < planned - living.peak - spare < 64 << 20
    assert living.extent < planned - spare / 2


@pytest.mark.parametrize("prefill", ["full", *NARROW_DTYPES])
@pytest.mark.parametrize("first", [2, 60])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_chunk_lies_where_the_last_one_did(first: int, prefill: str) -> None:
    """Though its scores are a little larger: else PyTorch gives all back and asks anew, over and over."""
    made, planned, spare = counted(8192, prefill)
    living = read_chunks(made, 8192, [number * 8192 for number in range(first, first + 20)])
    assert living.extent < planned - spare / 2


@pytest.mark.gpu
@pytest.mark.parametrize("prefill", ["full", *NARROW_DTYPES])
@pytest.mark.parametrize("tokens", [8192, 2048])
def test_on_the_gpu(tokens: int, prefill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels' own room and roundings included; the history is there before."""
    device = torch.device("cuda")
    if lack := why_not(prefill, device) if prefill != "full" else "":
        pytest.skip(lack)
    monkeypatch.setattr(ResidentAttention, "pieces", two_pieces)
    monkeypatch.setattr(planes_weight, "_scratch", {})
    made, planned = lean(network(device), tokens, prefill)
    if prefill != "full":
        made = narrowed(made, prefill)
    cache = make_history(made.config, MILLION - tokens, MILLION, torch.bfloat16, device)
    ids = torch.zeros(tokens, dtype=torch.int64, device=device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        made.read(ids, cache, True, None)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= planned
