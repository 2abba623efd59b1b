"""What "exact" means, made testable: a session and the list of chunks that led to it, replayed in a fresh one.

SALA_SPEC 7b in one line: bit-equal to a session that was given the same tokens with the same final length and the
same chunk edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from naive_sala import random_ids

from salalocal.cache.session_cache import Checkpoint
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session


@dataclass(frozen=True)
class Chunk:
    """Tokens that went through the network together, and the final length they were read under."""

    ids: tuple[int, ...]
    final_length: int


@dataclass
class Tracked:
    """A session beside the chunks of its past; every operation is done to both."""

    engine: Engine
    session: Session
    past: list[Chunk] = field(default_factory=list)

    @staticmethod
    def new(engine: Engine) -> Tracked:
        return Tracked(engine, engine.new_session(record_selection=True))

    def read(self, ids: list[int], final_length: int | None = None) -> None:
        final_length = final_length or self.session.length + len(ids)
        self.past.append(Chunk(tuple(ids), final_length))
        self.session.prefill(ids, chunk_size=len(ids), final_length=final_length)

    def fork(self) -> Tracked:
        return Tracked(self.engine, self.session.fork(), list(self.past))

    def rewind(self, checkpoint: Checkpoint) -> None:
        self.session.rewind(checkpoint)
        held, past = 0, []
        for chunk in self.past:
            if held < checkpoint.position:
                past.append(chunk)
            held += len(chunk.ids)
        self.past = past

    def check(self) -> None:
        """Bit-equal to a fresh session with the same past, now and after further tokens."""
        fresh = self.engine.new_session(record_selection=True)
        for chunk in self.past:
            fresh.prefill(chunk.ids, chunk_size=len(chunk.ids), final_length=chunk.final_length)
        assert_same(self.session, fresh)
        probe = self.session.fork()
        for ids in ([3, 1, 4, 1, 5, 9, 2], [6], [5]):
            assert torch.equal(probe.prefill(ids), fresh.prefill(ids))
            assert_same(probe, fresh)


def assert_same(one: Session, other: Session) -> None:
    """Same tokens, same logits and same states, bit by bit."""
    assert one.token_ids == other.token_ids
    assert one.length == other.length == len(one.token_ids)
    if other.logits is None:
        assert one.logits is None
    else:
        assert one.logits is not None
        assert torch.equal(one.logits, other.logits)
    for layer in one._network.config.lightning_layers:
        assert torch.equal(one.linear_state(layer), other.linear_state(layer)), f"state of layer {layer}"


def assert_restored(restored: Session, session: Session) -> None:
    """Same in all that a session has, now, after going back to every checkpoint, in forks, and reading on."""
    assert_same(restored, session)
    assert [known.position for known in restored.checkpoints] == [known.position for known in session.checkpoints]
    for kept, known in zip(restored.checkpoints, session.checkpoints, strict=True):
        one, other = restored.fork(), session.fork()
        one.rewind(kept)
        other.rewind(known)
        assert_same(one, other)
        assert_reads_on(one, other)
    assert_reads_on(restored.fork(), session.fork())


def assert_reads_on(one: Session, other: Session) -> None:
    for ids in ([6], random_ids(21, seed=8)):
        assert torch.equal(one.prefill(ids, chunk_size=7), other.prefill(ids, chunk_size=7))
        assert_same(one, other)
