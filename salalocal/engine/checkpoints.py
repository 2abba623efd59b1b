"""The places that one session can go back to. Knows positions and what lies at them, and reads nothing."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable

from salalocal.cache.session_cache import Checkpoint
from salalocal.engine.schedule import thin
from salalocal.saved_size import CHECKPOINT_BUDGET_BYTES


class Checkpoints:
    """Those of one session's past.

    Attributes:
        kept: by position; the first is at 0. Thinned out beyond CHECKPOINT_BUDGET_BYTES.
    """

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []
        # All of this past that anybody holds, also those thinned out of the list above.
        self._valid: weakref.WeakSet[Checkpoint] = weakref.WeakSet()

    def __contains__(self, checkpoint: Checkpoint) -> bool:
        """Whether it is of this past, kept or not."""
        return checkpoint in self._valid

    def at(self, position: int) -> Checkpoint | None:
        """The last one, where it is at `position`."""
        return self.kept[-1] if self.kept and self.kept[-1].position == position else None

    def add(self, made: Checkpoint) -> None:
        """Keeps one that lies behind all others; others may go for it."""
        self._valid.add(made)
        self.kept.append(made)
        dropped = thin([known.position for known in self.kept], CHECKPOINT_BUDGET_BYTES // max(1, made.nbytes))
        self.kept = [known for known in self.kept if known.position not in dropped]

    def adopt(self, known: Iterable[Checkpoint], positions: Container[int]) -> None:
        """Keeps those of `known`, in their order, that are at one of `positions`; none goes for them."""
        self.kept += [checkpoint for checkpoint in known if checkpoint.position in positions]
        self._valid.update(self.kept)

    def nearest(self, common: int, prompt_tokens: int) -> Checkpoint:
        """The last one from which a prompt can be read on, of whose tokens `common` are those of the session.

        Its logits are known where it holds the whole prompt.
        """
        target = [
            known
            for known in self.kept
            if known.position <= common and (known.position < prompt_tokens or known.logits is not None)
        ][-1]
        # Without linear states any position can be gone back to; one token is read again for its logits.
        anywhere = min(common, prompt_tokens - 1)
        return Checkpoint(anywhere, (), None) if not target.states and target.position < anywhere else target

    def cut(self, position: int) -> None:
        """Forgets those after `position`."""
        self.kept = [known for known in self.kept if known.position <= position]
        self._valid = weakref.WeakSet(known for known in self._valid if known.position <= position)

    def fork(self) -> Checkpoints:
        """The same, for a second session with the same past."""
        copy = Checkpoints()
        copy.kept, copy._valid = list(self.kept), weakref.WeakSet(self._valid)
        return copy
