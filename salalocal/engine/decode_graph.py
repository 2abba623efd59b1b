"""One token after another as one CUDA graph per token: nothing in it waits for the host. Knows no text and no session.

A step is recorded for a room of so many tokens, dense or sparse attention, and a way of choosing the next token. The
token, its position and the random state lie in device memory and change between replays. What a step writes, it writes
in place: K/V and compressed keys past the length, and linear states of its own, which the session's memory takes over.
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
from salalocal_kernels import watch

# Recording takes as long as some hundred tokens, so rooms are at least this much apart.
ROOM_TOKENS = 4096
# Before it is recorded a step runs twice: kernels are compiled, libraries take their memory.
_WARM_UPS = 2


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
    """Where a step leaves what it found; the next replay overwrites it.

    Attributes:
        logits: [V].
        chosen: int64 [1], -1 where the logits are not finite; None without a choice.
        reads: attention layer -> what it read; dense layers name all blocks there is room for.
    """

    logits: Tensor
    chosen: Tensor | None
    reads: dict[int, BlocksRead]


class CannotRecord(Exception):
    """An op of the step has no kernel for this model, and its definition waits for the device."""


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
        self._table: Tensor | None = None
        self._storage: StepStorage | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: StepResult | None = None
        # Token, position, seed and count of the step; the length after it, once it has run to its end.
        self._inputs = torch.zeros(5, dtype=torch.int64, device=network.device)
        self._is_open = False

    def step(self, cache: SessionCache, token_id: int, kind: StepKind, sampler: Sampler | None) -> StepResult:
        """Reads one token after those of `cache`; whose length the caller moves.

        Args:
            cache: the session's memory.
            token_id: of the vocabulary.
            kind: what is asked for; where it names a choice, `sampler` has it.
            sampler: gives seed and count.

        Raises:
            CannotRecord: the step would wait for the device; `cache` is as it was.
        """
        with torch.inference_mode():
            length = cache.length
            room = self._room if self._room[0] < length + 1 <= self._room[1] else room_for(length + 1)
            cache.prepare_step(room[1], self._max_tokens)
            numbers = (token_id, length, sampler.seed if sampler else 0, sampler.count if sampler else 0, 0)
            self._inputs.copy_(torch.tensor(numbers))
            held = cache.storage()
            if kind != self._kind or room != self._room or not _are_same(held, self._held):
                self._record(cache, kind, room, held)
            self._take_over(cache)
            self._is_open = True
            return self._run()

    def close(self) -> None:
        """The caller has taken over the step's result and its token."""
        self._is_open = False

    def left_open(self, length: int) -> StepResult | None:
        """The result of a step up to `length` that has run though its caller was interrupted; waits for the device."""
        return self._result if self._is_open and int(self._inputs[4]) == length else None

    def _record(self, cache: SessionCache, kind: StepKind, room: tuple[int, int], held: tuple[Tensor, ...]) -> None:
        # First of all, so that nothing half made is taken for a recorded step.
        self._kind, self._graph, self._result = None, None, None
        states = self._storage.states if self._storage else tuple(torch.empty_like(state) for state in cache.states)
        self._storage, self._table = cache.step_storage(room[1], states), None
        if self._network.device.type == "cuda":
            self._take_over(cache)
            self._capture(kind)
        self._kind, self._room, self._held = kind, room, held

    def _capture(self, kind: StepKind) -> None:
        assert self._storage is not None
        # Running a step on the side writes nothing but K/V, compressed keys and states, the latter for good.
        kept = [state.clone() for state in self._storage.states]
        main = torch.cuda.current_stream(self._network.device)
        side = torch.cuda.Stream(self._network.device)  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        try:
            with torch.cuda.stream(side), watch() as served:
                for _ in range(_WARM_UPS):
                    self._compute(kind)
        finally:
            main.wait_stream(side)
            for state, before in zip(self._storage.states, kept, strict=True):
                state.copy_(before)
            self._inputs[4:].zero_()
        if served.fallbacks:
            raise CannotRecord("; ".join(f"{op}: {why}" for op, why in served.fallbacks.items()))
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile is no part of it and does not disturb it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = self._compute(kind)
        self._graph = graph

    def _take_over(self, cache: SessionCache) -> None:
        """The step's own states and page table become those of `cache`, and `cache` holds these states from now on."""
        assert self._storage is not None
        for own, state in zip(self._storage.states, cache.states, strict=True):
            if own is not state:
                own.copy_(state)
        cache.states = list(self._storage.states)
        if cache.page_table is not self._table:
            self._storage.page_table[: len(cache.page_table)].copy_(cache.page_table)
            self._table = cache.page_table

    def _run(self) -> StepResult:
        if self._graph is not None:
            self._graph.replay()
        else:
            assert self._kind is not None
            self._result = self._compute(self._kind)
        assert self._result is not None
        return self._result

    def _compute(self, kind: StepKind) -> StepResult:
        """The step itself: device memory in, device memory out."""
        assert self._storage is not None
        token, position, seed, count, reached = (self._inputs[index : index + 1] for index in range(5))
        reads: dict[int, BlocksRead] = {}
        memory = self._storage.at(position)
        logits = self._network.step(token, memory, kind.is_sparse, reads.__setitem__, kind.is_watched)
        chosen = None if kind.choice is None else kind.choice(logits, seed, count)
        torch.add(position, 1, out=reached)
        return StepResult(logits, chosen, reads)


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
