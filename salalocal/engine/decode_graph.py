"""One token after another as one CUDA graph per token: nothing in it waits for the host. Knows no text and no session.

A step is recorded for a room of so many tokens, dense or sparse attention, and a way of choosing the next token. The
token, its position and the random state lie in device memory; a step that chooses leaves the next step's there, so that
this can begin before the host has read what was chosen. There are two sides, each a recording and a set of linear
states: a step reads the states of its side and writes those of the other. So a step that was begun ahead and is not
wanted has done no harm: what it wrote lies past the session's length, or in states that nobody reads.

The first step of each side runs unrecorded, which compiles its kernels, and the second is recorded. So a session that
was forked, or whose memory has moved, answers at once, and recording is no more than one of its steps at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.cache.session_cache import SessionCache
from salalocal.cache.step_memory import StepStorage
from salalocal.engine.sampling import Choice, Sampler
from salalocal.model.network import Network
from salalocal.model.sparse_layer import BlocksRead
from salalocal_kernels import advance, watch

# Recording takes as long as some hundred tokens, so rooms are at least this much apart.
ROOM_TOKENS = 4096


@dataclass(frozen=True)
class StepKind:
    """What is built into a recorded step.

    Attributes:
        is_sparse, is_watched: as for `Network.step`.
        choice: how the next token is chosen; None where only logits are asked for.
    """

    is_sparse: bool
    is_watched: bool
    choice: Choice | None


@dataclass(frozen=True)
class StepResult:
    """Where a step leaves what it found; the next step but one overwrites it.

    Attributes:
        logits: [V].
        states: [H, Dk, Dv] per lightning layer, after the step.
        reads: attention layer -> what it read; dense layers name all blocks there is room for.
    """

    logits: Tensor
    states: tuple[Tensor, ...]
    reads: dict[int, BlocksRead]


class CannotRecord(Exception):
    """An op of the step has no kernel for this model, and its definition waits for the device."""


@dataclass(eq=False)
class _Side:
    """One of two recordings of a step, and where it leaves what the host asks for.

    Attributes:
        storage: what it reads and writes.
        told: int64 [1] in memory of the host, the chosen token, -1 where the logits are not finite.
        done: when `told` is there; None on a processor, where it always is.
        graph, result: of the recording; without a graph the step is run.
        table: the page table that the storage has taken over.
        has_run: since it was made; its next step may be recorded.
    """

    storage: StepStorage
    told: Tensor
    done: torch.cuda.Event | None
    graph: torch.cuda.CUDAGraph | None = None
    result: StepResult | None = None
    table: Tensor | None = None
    has_run: bool = False


@dataclass(frozen=True)
class _Ahead:
    """A step begun ahead: its number among the cache's moves, and the count of its draw."""

    moves: int
    seed: int
    count: int


class DecodeGraph:
    """Steps of one session.

    On a processor the same step runs without being recorded, which is for tests.

    Args:
        network: the model.
        max_tokens: the longest the session may become.
    """

    def __init__(self, network: Network, max_tokens: int) -> None:
        self._network = network
        self._max_tokens = max_tokens
        self._room = (0, 0)
        self._kind: StepKind | None = None
        self._held: tuple[Tensor, ...] = ()
        self._sides: tuple[_Side, _Side] | None = None
        # The side of the last step, and the step begun after it.
        self._last = 0
        self._ahead: _Ahead | None = None
        self._chosen: int | None = None
        # Token, position, seed and count of the next step, and the length after it.
        self._inputs = torch.zeros(5, dtype=torch.int64, device=network.device)

    def step(self, cache: SessionCache, token_id: int, kind: StepKind, sampler: Sampler | None) -> StepResult:
        """Reads one token after those of `cache`, whose length and states the caller moves.

        Args:
            cache: the session's memory.
            token_id: of the vocabulary.
            kind: what is asked for; where it names a choice, `sampler` has it.
            sampler: gives seed and count.

        Raises:
            CannotRecord: the step would wait for the device; `cache` is as it was.
        """
        seed, count = (sampler.seed, sampler.count) if sampler else (0, 0)
        ahead, self._ahead = self._ahead, None
        begun = ahead == _Ahead(cache.moves, seed, count) and token_id == self._chosen and kind == self._kind
        self._chosen = None
        if begun:
            self._last = 1 - self._last
            return self._result()
        with torch.inference_mode():
            length = cache.length
            room = self._room if self._room[0] < length + 1 <= self._room[1] else room_for(length + 1)
            cache.prepare_step(room[1], self._max_tokens)
            held = cache.storage()
            if kind != self._kind or room != self._room or not _are_same(held, self._held):
                self._begin(cache, kind, room, held)
            self._last = self._side_of(cache)
            self._inputs.copy_(torch.tensor((token_id, length, seed, count, length + 1)))
            self._run(self._last, cache)
        return self._result()

    def run_ahead(self, cache: SessionCache, kind: StepKind, sampler: Sampler | None) -> None:
        """Begins the step after the one that `cache` has just taken over, with the token that it chose.

        Args:
            cache: the session's memory, after that step.
            kind: of the next step; nothing is begun where it is another one, has no choice, or is not recorded yet.
            sampler: as for the last step; its count has not moved yet.
        """
        length = cache.length
        fits = self._room[0] < length + 1 <= self._room[1] and length < self._max_tokens
        if sampler is None or kind.choice is None or kind != self._kind or not fits:
            return
        with torch.inference_mode():
            cache.prepare_step(self._room[1], self._max_tokens)
            if not _are_same(cache.storage(), self._held) or not self._is_quick(1 - self._last):
                return
            self._run(1 - self._last, cache)
        self._ahead = _Ahead(cache.moves, sampler.seed, sampler.count + 1)

    def forget(self) -> None:
        """Gives back the memory of all recordings; the next step begins anew."""
        self._kind, self._sides, self._held = None, None, ()
        self._ahead = self._chosen = None

    @property
    def is_ahead(self) -> bool:
        """Whether the next step has begun."""
        return self._ahead is not None

    def chosen(self) -> int:
        """The token that the last step chose, -1 where its logits are not finite; waits for that step only."""
        assert self._sides is not None
        side = self._sides[self._last]
        if side.done is not None:
            side.done.synchronize()
        self._chosen = int(side.told)
        return self._chosen

    def _result(self) -> StepResult:
        assert self._sides is not None
        result = self._sides[self._last].result
        assert result is not None
        return result

    def _begin(self, cache: SessionCache, kind: StepKind, room: tuple[int, int], held: tuple[Tensor, ...]) -> None:
        """Two sides for steps of this kind over this memory, to be recorded while they are taken."""
        # First of all, so that nothing half made is taken for what was asked for.
        self._kind = None
        kept = self._sides[0].storage if self._sides else None
        own = kept.states if kept else tuple(map(torch.empty_like, cache.states))
        others = kept.new_states if kept else tuple(map(torch.empty_like, cache.states))
        is_cuda, device = self._is_cuda, self._network.device

        def side(states: tuple[Tensor, ...], new_states: tuple[Tensor, ...]) -> _Side:
            told = torch.zeros(1, dtype=torch.int64, device="cpu" if is_cuda else device, pin_memory=is_cuda)
            done = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]
            return _Side(cache.step_storage(room[1], states, new_states), told, done)

        self._sides, self._room, self._held = (side(own, others), side(others, own)), room, held
        self._kind = kind

    @property
    def _is_cuda(self) -> bool:
        return self._network.device.type == "cuda"

    def _is_quick(self, number: int) -> bool:
        """Whether the next step of a side is no more than a launch; on a processor there is nothing to record."""
        return not self._is_cuda or (self._sides is not None and self._sides[number].graph is not None)

    def _capture(self, kind: StepKind, side: _Side) -> None:
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile is no part of it and does not disturb it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self._compute(kind, side)
        side.graph, side.result = graph, result

    def _side_of(self, cache: SessionCache) -> int:
        """The side that reads the states of `cache`; those of another origin are copied to the first.

        After a step it is the other one than the step's, whose result may still be asked for.
        """
        assert self._sides is not None
        if not cache.states:
            return 1 - self._last
        for number, side in enumerate(self._sides):
            if _are_same(side.storage.states, tuple(cache.states)):
                return number
        _copy_states(self._sides[0], cache)
        return 0

    def _run(self, number: int, cache: SessionCache) -> None:
        """Begins the step of one side at what lies in `_inputs`."""
        assert self._sides is not None
        assert self._kind is not None
        side = self._sides[number]
        _update_table(side, cache)
        if self._is_cuda and side.has_run and side.graph is None:
            self._capture(self._kind, side)
        if side.graph is not None:
            side.graph.replay()
        else:
            with watch() as served:
                side.result = self._compute(self._kind, side)
            if self._is_cuda and served.fallbacks:
                raise CannotRecord("; ".join(f"{op}: {why}" for op, why in served.fallbacks.items()))
        side.has_run = True
        if side.done is not None:
            side.done.record()

    def _compute(self, kind: StepKind, side: _Side) -> StepResult:
        """The step itself: device memory in, device memory out."""
        token, position, seed, count, length = (self._inputs[index : index + 1] for index in range(5))
        reads: dict[int, BlocksRead] = {}
        memory = side.storage.at(position, length)
        logits = self._network.step(token, memory, kind.is_sparse, reads.__setitem__, kind.is_watched)
        if kind.choice is not None:
            chosen = kind.choice(logits, seed, count)
            advance(self._inputs, chosen, side.told)
        return StepResult(logits, side.storage.new_states, reads)


def _copy_states(side: _Side, cache: SessionCache) -> None:
    for own, state in zip(side.storage.states, cache.states, strict=True):
        if own is not state:
            own.copy_(state)


def _update_table(side: _Side, cache: SessionCache) -> None:
    if cache.page_table is not side.table:
        # A chunk that died may have left pages beyond the room.
        pages = cache.page_table[: len(side.storage.page_table)]
        side.storage.page_table[: len(pages)].copy_(pages)
        side.table = cache.page_table


def room_for(length: int) -> tuple[int, int]:
    """The room for a session of `length` tokens: it is more than the first number and up to the second.

    The length alone decides, not how it was come to: kernels cut their work by the room, and a session that went back
    has to compute as one that was never longer.
    """
    low, high = 0, ROOM_TOKENS
    while high < length:
        low, high = high, high + max(ROOM_TOKENS, high // 8 // ROOM_TOKENS * ROOM_TOKENS)
    return low, high


def _are_same(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
