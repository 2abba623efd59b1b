"""Tokens into a session's memory, in chunks or one at a time: each whole or not at all. Knows no checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from salalocal.cache.manifest import Manifest
from salalocal.cache.saved_session import read_session
from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.engine.decode_graph import CannotRecord, DecodeGraph, StepKind, StepResult
from salalocal.engine.out_of_memory import Attempt, attempt, is_out_of_memory
from salalocal.engine.readings import Readings
from salalocal.engine.sampling import Sampler
from salalocal.model.network import Network
from salalocal.model.sparse_layer import BlocksRead

_LOG = logging.getLogger(__name__)


class Reader:
    """What one session has read, and the way in for more.

    Args:
        network: the model.
        cache: what has been read.
        max_tokens: the longest the session may become.
        record_selection: keep which blocks the last call selected.

    Attributes:
        token_ids: the tokens in `cache`.
        readings: what the attention layers read in the last call.
        decoder: reads tokens one at a time; None where they are read as chunks.
    """

    def __init__(self, network: Network, cache: SessionCache, max_tokens: int, record_selection: bool) -> None:
        self._network = network
        self._cache = cache
        self.token_ids: list[int] = []
        self.readings = Readings(record_selection, network.config.sparse_layers)
        self._logits: Tensor | None = None
        # Whether they lie where the decoder's next step but one leaves its own.
        self._is_lent = False
        # In float64 the definitions serve, which wait for the GPU.
        has_graph = network.device.type == "cuda" and network.dtype != torch.float64
        self.decoder = DecodeGraph(network, max_tokens) if has_graph else None

    @property
    def knows_logits(self) -> bool:
        """Whether those of the last token are here."""
        return self._logits is not None

    def last_logits(self) -> Tensor:
        """Logits [vocab] of the last token, which must be known; the next step but one may overwrite them."""
        assert self._logits is not None
        return self._logits

    @property
    def logits(self) -> Tensor | None:
        """As `Session.logits`: nobody overwrites them."""
        if self._is_lent:
            assert self._logits is not None
            self._logits, self._is_lent = self._logits.clone(), False
        return self._logits

    def is_sparse(self, final_length: int) -> bool:
        """Whether attention over a prompt of so many tokens is sparse."""
        sparse = self._network.config.sparse
        return sparse is not None and final_length >= sparse.dense_len

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        """Does it, once more where memory runs out; then raises DoesNotFit."""
        attempt(what, [Attempt(call), Attempt(call)], self._network.device, self._give_back)

    def _give_back(self) -> None:
        """All memory but that of what was read."""
        if self.decoder is not None:
            self.decoder.forget()
            # Nobody overwrites them now.
            self._is_lent = False
        self._cache.trim()
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()

    def read(
        self, token_ids: list[int], is_sparse: bool, is_watched: bool, all_logits: list[Tensor] | None, is_halved: bool
    ) -> None:
        """Reads a chunk, or half of it where memory runs out, unless chunks are halved already.

        Args:
            token_ids: checked.
            is_sparse: as `is_sparse` says of the whole prompt.
            is_watched: as `Session.is_watched`.
            all_logits: takes the chunk's logits [chunk, vocab]; None where nobody asks for them.
            is_halved: by an earlier chunk of the call.

        Raises:
            DoesNotFit: memory ran out nevertheless; nothing of the chunk was read.
        """

        def chunk(ids: list[int]) -> Callable[[], None]:
            return lambda: self.read_chunk(ids, is_sparse, is_watched, all_logits)

        attempts, half = [Attempt(chunk(token_ids))], -(-len(token_ids) // 2)
        if not is_halved:
            note = f"reading on in chunks of {half:,}" if half < len(token_ids) else Attempt.note
            attempts.append(Attempt(chunk(token_ids[:half]), note))
        tokens = "a token" if len(token_ids) == 1 else f"{len(token_ids):,} tokens"
        attempt(f"reading {tokens} after {self._cache.length:,}", attempts, self._network.device, self._give_back)

    def read_chunk(
        self, token_ids: list[int], is_sparse: bool, is_watched: bool, all_logits: list[Tensor] | None
    ) -> None:
        """All of a chunk or, where anything fails, nothing of it; arguments as for `read`."""
        found: dict[int, BlocksRead] = {}
        ids = torch.tensor(token_ids, dtype=torch.int64).to(self._network.device)
        with torch.inference_mode():
            record = found.__setitem__ if self.readings.records_selection or is_watched else None
            normed, states = self._network.read(ids, self._cache, is_sparse, record, is_watched)
            logits = self._network.logits(normed if all_logits is not None else normed[-1:])
        # Outside inference mode, so that callers may do with the copies what they like; and no view of a whole chunk.
        last = logits[-1].clone()
        self._cache.commit(len(token_ids), states)
        self.token_ids.extend(token_ids)
        self._logits, self._is_lent = last, False
        self.readings.add(found, is_watched)
        if all_logits is not None:
            all_logits.append(logits)

    def step(self, token: int, is_watched: bool, sampler: Sampler | None) -> DecodeGraph | None:
        """Reads one token as a recorded step.

        Args:
            token: checked.
            is_watched: as `Session.is_watched`.
            sampler: chooses the next token; None where only logits are asked for.

        Returns:
            what read it and knows what it chose; None where there are no such steps, and nothing was read.

        Raises:
            DoesNotFit: memory ran out, twice; nothing was read.
        """
        decoder, length = self.decoder, self._cache.length
        if decoder is None:
            return None
        choice = sampler.choice if sampler else None
        self.readings.clear()

        def read() -> None:
            kind = StepKind(self.is_sparse(length + 1), is_watched, choice)
            self._count(token, length, is_watched, decoder.step(self._cache, token, kind, sampler))

        try:
            self.attempt(f"reading a token after {length:,}", read)
        except CannotRecord as reason:
            _LOG.warning("tokens are read without a CUDA graph: %s", reason)
            self.decoder = None
            return None
        try:
            next_kind = StepKind(self.is_sparse(length + 2), is_watched, choice)
            decoder.run_ahead(self._cache, next_kind, sampler)
        except Exception as error:
            # Nobody has asked for that step yet; whoever does is told.
            if not is_out_of_memory(error):
                raise
        return decoder

    @property
    def launched(self) -> int:
        """As `Session.launched`."""
        return self._cache.length + (self.decoder is not None and self.decoder.is_ahead)

    def _count(self, token: int, length: int, is_watched: bool, result: StepResult) -> None:
        """Takes over a step whole, or on an error nothing of it."""
        try:
            self._take_over(token, length, is_watched, result)
        except Exception:
            raise
        except BaseException:
            # Ctrl-C: half a token must not count.
            self._take_over(token, length, is_watched, result)
            raise

    def _take_over(self, token: int, length: int, is_watched: bool, result: StepResult) -> None:
        """Makes a step up to `length` + 1 count; may be begun anew."""
        # What may fail comes first.
        if self.readings.records_selection or is_watched:
            self.readings.take_copy(result.reads, self._cache.blocks_of(length + 1), is_watched)
        # Nobody asks for most of them, and a copy is a launch between two graphs.
        self._logits, self._is_lent = result.logits, True
        self.token_ids[length:] = [token]
        if self._cache.length == length:
            self._cache.commit(1, list(result.states))

    def stand_at(self, token_ids: list[int], logits: Tensor | None) -> None:
        """The memory came to hold `token_ids` without this reader, with such logits after the last."""
        self.token_ids, self._logits, self._is_lent = token_ids, logits, False

    def read_saved(self, folder: Path, manifest: Manifest) -> list[Checkpoint]:
        """As `Session.read_saved`; returns what is known at each position that the linear states were saved at."""
        wide = torch.promote_types(self._network.dtype, torch.float32)
        no_logits = torch.empty(self._network.config.vocab_size, dtype=wide, device=self._network.device)
        token_ids, known = read_session(folder, manifest, self._cache, no_logits)
        self.stand_at(token_ids, known[-1].logits if known else None)
        return known

    def go_back(self, target: Checkpoint) -> None:
        """Forgets what was read after `target`."""
        self._cache.rewind(target)
        self._logits, self._is_lent = target.logits, False
        del self.token_ids[target.position :]
        self.readings.clear()
