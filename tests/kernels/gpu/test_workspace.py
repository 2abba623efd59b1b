"""What a chunk allocates on a card, counted without one: never more than the planner says where every MiB counts."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from test_decode_step import META, empty, network
from triton.runtime.jit import JITFunction

from salalocal.bench.made_model import released_config
from salalocal.cache.attention_memory import Piece
from salalocal.cache.session_cache import SessionCache
from salalocal.model.pieces import attend_in_pieces
from salalocal.planner import footprint
from salalocal_kernels import dispatch
from salalocal_quant.packed import SCRATCH_BYTES

MIB = 1 << 20
LENGTH = 1 << 20
SCRATCH = 128 * MIB
# Angles, states and the like: what they take is not counted one by one.
SMALL = 24 * MIB


class Allocations(TorchDispatchMode):
    """Bytes of tensors made since the beginning that are still there, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage(), given)
        return result

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

        def gone() -> None:
            self._known.discard(key)
            self.bytes -= size

        weakref.finalize(storage, gone)


@pytest.fixture(autouse=True)
def _kernels_are_chosen_and_not_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_device_type", lambda _: "cuda")
    monkeypatch.setitem(SCRATCH_BYTES, "meta", SCRATCH_BYTES["cuda"])

    # Not a mock of unittest's, which would keep every tensor it is called with.
    def nothing(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(JITFunction, "run", nothing)
    with torch.inference_mode():
        yield


def planned(tokens: int) -> int:
    """Of a chunk's workspace, less what every product shares and what is left for the unforeseen."""
    return footprint(released_config(), 2, tokens, is_lean=True).workspace_bytes - SCRATCH - 128 * MIB


def lean() -> Any:
    made = network()
    slices = footprint(made.config, 2, 1, is_lean=True).feed_tokens
    layers = (replace(each, feed_forward=replace(each.feed_forward, slice_tokens=slices)) for each in made.layers)
    return replace(made, layers=tuple(layers))


@pytest.mark.parametrize("tokens", [8192, 4096, 2048])
def test_what_a_chunk_takes_is_what_the_planner_says(tokens: int) -> None:
    made, cache = lean(), SessionCache.empty(released_config(), torch.bfloat16, META)
    cache.extend(LENGTH - tokens)
    cache.length = LENGTH - tokens
    cache.reserve(tokens)
    ids = empty(tokens, dtype=torch.int64)
    # The first time compressed keys and the scratch buffer get their room.
    made.read(ids, cache, True, None)
    with Allocations() as allocations:
        made.read(ids, cache, True, None)
    assert 0.8 * planned(tokens) < allocations.peak <= planned(tokens) + SMALL


@pytest.mark.parametrize("tokens", [8192, 4096, 2048])
def test_attention_in_pieces_takes_no_more(tokens: int) -> None:
    config = released_config()
    hidden = config.hidden_size
    # The residual stream and its norm, q and gate, K and V are there besides.
    besides = tokens * hidden * (4 + 2 + 2 + 2) + 2 * tokens * 2 * 2 * 128 * 2
    q, blocks = empty(tokens, 32, 128), empty(2, tokens, 96, dtype=torch.int32)
    pages, table = empty(4096, 2, 2, 64, 128), empty(LENGTH // 64, dtype=torch.int64)
    pieces = [Piece(pages, table, first, first + 4096, is_whole=False) for first in range(0, LENGTH // 64, 4096)]
    with Allocations() as allocations:
        attend_in_pieces(q, blocks, pieces, LENGTH - tokens, 0.1)
    assert besides + allocations.peak <= planned(tokens)
