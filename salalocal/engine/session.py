"""One conversation's tokens and memory: prefill in chunks, step, checkpoint, rewind, fork. Knows no text."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from salalocal.cache.manifest import Manifest, ModelIdentity
from salalocal.cache.saved_session import read_session
from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.cache.tiered_store import Traffic
from salalocal.engine.decode_graph import CannotRecord, DecodeGraph, StepKind, StepResult
from salalocal.engine.out_of_memory import Attempt, attempt, is_out_of_memory
from salalocal.engine.progress import Progress, RateMeter
from salalocal.engine.readings import Readings
from salalocal.engine.sampling import Sampler
from salalocal.engine.saves import Saves
from salalocal.engine.schedule import chunk_edges, common_length, thin
from salalocal.engine.session_files import Contents
from salalocal.engine.token_ids import checked_ids
from salalocal.errors import Cancelled, ContextTooLong, InvalidRequest
from salalocal.model.network import Network
from salalocal.model.sparse_layer import BlocksRead
from salalocal.saved_size import CHECKPOINT_BUDGET_BYTES

_LOG = logging.getLogger(__name__)


class Session:
    """A growing sequence of tokens that a network has read.

    Made by `Engine.new_session`. Not for use from two threads at once. Whatever interrupts a call, the session holds
    the chunks that were finished, exactly.

    Args:
        network: the model.
        cache: what has been read.
        default_chunk: tokens per chunk where a call names none.
        max_tokens: the longest the session may become.
        record_selection: keep which blocks the last call selected.
        model: who reads, for what is saved.

    Attributes:
        token_ids: the tokens read.
        checkpoints: those kept, by position; the first is at 0. Thinned out beyond CHECKPOINT_BUDGET_BYTES.
        is_watched: keep, from the next call on, how the attention of a call's last token is shared out.
    """

    def __init__(
        self,
        network: Network,
        cache: SessionCache,
        default_chunk: int,
        max_tokens: int,
        record_selection: bool,
        model: ModelIdentity,
    ) -> None:
        self._network = network
        self._cache = cache
        self._default_chunk = default_chunk
        self.max_tokens = max_tokens
        self._saves = Saves(model)
        self.is_watched = False
        self._readings = Readings(record_selection, network.config.sparse_layers)
        self._logits: Tensor | None = None
        # Whether they lie where the decoder's next step but one leaves its own.
        self._logits_are_lent = False
        self.token_ids: list[int] = []
        self.checkpoints: list[Checkpoint] = []
        # All checkpoints of this past that anybody holds, also those thinned out of the list above.
        self._valid: weakref.WeakSet[Checkpoint] = weakref.WeakSet()
        # In float64 the definitions serve, which wait for the GPU.
        has_graph = network.device.type == "cuda" and network.dtype != torch.float64
        self._decoder = DecodeGraph(network, max_tokens) if has_graph else None
        if not self.length:
            self.checkpoint()

    @property
    def length(self) -> int:
        """Tokens read."""
        return self._cache.length

    @property
    def nbytes(self) -> int:
        """Bytes of cache and checkpoints; K/V shared with forks is counted in each."""
        return self._cache.nbytes + sum(checkpoint.nbytes for checkpoint in self.checkpoints)

    def prefill(
        self,
        token_ids: Sequence[int],
        chunk_size: int | None = None,
        final_length: int | None = None,
        checkpoints_at: Iterable[int] = (),
        all_logits: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Tensor:
        """Reads tokens after those already read; any chunk size gives the same result up to rounding.

        Args:
            token_ids: at least one, each below the vocabulary size.
            chunk_size: tokens per chunk; None leaves it to the engine.
            final_length: length the whole prompt will have, this call and later ones; it decides between dense and
                sparse attention. None: the length after this call.
            checkpoints_at: absolute positions, from the present length on, at which to keep a checkpoint in
                `checkpoints`.
            all_logits: return logits of every token, not only of the last.
            on_progress: called after every chunk.
            cancel: looked at before every chunk.

        Returns:
            float32 (float64 in a float64 run) [vocab] of the last token, or [len(token_ids), vocab]; the caller's own.

        Raises:
            InvalidRequest: no tokens, an id that is no integer or out of range, chunk_size < 1, a final_length too
                short.
            ContextTooLong: more tokens than the session may hold; nothing was read.
            Cancelled: with the tokens held; call again with the rest and the same final_length.
            DoesNotFit: memory ran out, twice: what is kept for later was given back and the chunk halved, once per
                call, which the log tells. The session holds the chunks that were finished.
        """
        rows: list[Tensor] = []
        steps = self.read(token_ids, chunk_size, final_length, checkpoints_at, cancel, rows if all_logits else None)
        for progress in steps:
            if on_progress is not None:
                on_progress(progress)
        assert self._logits is not None
        return torch.cat(rows) if all_logits else self._logits.clone()

    def read(
        self,
        token_ids: Sequence[int],
        chunk_size: int | None = None,
        final_length: int | None = None,
        checkpoints_at: Iterable[int] = (),
        cancel: threading.Event | None = None,
        all_logits: list[Tensor] | None = None,
    ) -> Iterator[Progress]:
        """`prefill` as an iterator that yields after every chunk; `logits` holds the result.

        Args:
            all_logits: a list that takes the logits [chunk, vocab] of every chunk.

        Raises:
            InvalidRequest: besides the reasons of `prefill`: the session was rewound or read on between two chunks.
        """
        token_ids = self._checked(token_ids, chunk_size, final_length)
        start, stop = self.length, self.length + len(token_ids)
        wanted = set(checkpoints_at)
        is_sparse = self._is_sparse(stop if final_length is None else final_length)
        self._readings.clear()
        if start in wanted:
            self._attempt(f"a checkpoint after {start:,} tokens", self.checkpoint)
        self._attempt(f"room for {stop:,} tokens", lambda: self._cache.reserve(stop - start))
        meter = RateMeter()
        at, size, is_halved = start, chunk_size or self._default_chunk, False
        while at < stop:
            edge = chunk_edges(at, min(at + size, stop), size, wanted)[0]
            if cancel is not None and cancel.is_set():
                self._saves.after_chunk(self._contents(), is_checkpoint=True)
                raise Cancelled(self.length)
            if self.length != at:
                raise InvalidRequest(f"the session went from {at:,} to {self.length:,} tokens while it was being read")
            self._read_most(token_ids[at - start : edge - start], is_sparse, all_logits, is_halved)
            if self.length < edge:
                edge, size, is_halved = self.length, self.length - at, True
            at = edge
            if edge in wanted:
                self._attempt(f"a checkpoint after {edge:,} tokens", self.checkpoint)
            # Not after every token of an answer.
            self._saves.after_chunk(self._contents(), edge in wanted or 1 < edge - start == stop - start)
            rate = meter.mark(edge - start)
            yield Progress.now(edge - start, stop - start, rate, self._network.device)

    def _read_most(
        self, token_ids: list[int], is_sparse: bool, all_logits: list[Tensor] | None, is_halved: bool
    ) -> None:
        """A chunk, or half of it where memory runs out, unless chunks are halved already."""
        attempts, half = [Attempt(lambda: self._read_chunk(token_ids, is_sparse, all_logits))], -(-len(token_ids) // 2)
        if not is_halved:
            note = f"reading on in chunks of {half:,}" if half < len(token_ids) else Attempt.note
            attempts.append(Attempt(lambda: self._read_chunk(token_ids[:half], is_sparse, all_logits), note))
        tokens = "a token" if len(token_ids) == 1 else f"{len(token_ids):,} tokens"
        attempt(f"reading {tokens} after {self.length:,}", attempts, self._network.device, self._give_back)

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        """Twice, where memory runs out; then DoesNotFit."""
        attempt(what, [Attempt(call), Attempt(call)], self._network.device, self._give_back)

    def _give_back(self) -> None:
        """All memory but that of what was read."""
        if self._decoder is not None:
            self._decoder.forget()
            # Nobody overwrites them now.
            self._logits_are_lent = False
        self._cache.trim()
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()

    def _read_chunk(self, token_ids: list[int], is_sparse: bool, all_logits: list[Tensor] | None) -> None:
        """All of a chunk or, where anything fails, nothing of it."""
        found: dict[int, BlocksRead] = {}
        ids = torch.tensor(token_ids, dtype=torch.int64).to(self._network.device)
        with torch.inference_mode():
            record = found.__setitem__ if self._readings.records_selection or self.is_watched else None
            normed, states = self._network.read(ids, self._cache, is_sparse, record, self.is_watched)
            logits = self._network.logits(normed if all_logits is not None else normed[-1:])
        # Outside inference mode, so that callers may do with the copies what they like; and no view of a whole chunk.
        last = logits[-1].clone()
        self._cache.commit(len(token_ids), states)
        self.token_ids.extend(token_ids)
        self._logits, self._logits_are_lent = last, False
        self._readings.add(found, self.is_watched)
        if all_logits is not None:
            all_logits.append(logits)

    def step(self, token_id: int) -> Tensor:
        """Reads one token; returns float32 logits [vocab] for the next. Errors as for `prefill`: where memory runs out,
        the step is tried once more before DoesNotFit."""
        self._step(token_id, None)
        assert self._logits is not None
        return self._logits.clone()

    def step_and_choose(self, token_id: int, sampler: Sampler) -> int:
        """Reads one token and chooses the next. Errors as for `prefill` and `Sampler.accept`."""
        decoder = self._step(token_id, sampler)
        assert self._logits is not None
        return sampler(self._logits) if decoder is None else sampler.accept(decoder.chosen())

    @property
    def launched(self) -> int:
        """Tokens read, and one more where the next step has been begun ahead of its token."""
        return self.length + (self._decoder is not None and self._decoder.is_ahead)

    def _step(self, token_id: int, sampler: Sampler | None) -> DecodeGraph | None:
        """Reads one token; returns what read it, where that was a graph."""
        (token,) = self._checked((token_id,), None, None)
        decoder, length = self._decoder, self.length
        if decoder is None:
            self.prefill((token,))
            return None
        choice = sampler.choice if sampler else None
        self._readings.clear()

        def read() -> None:
            kind = StepKind(self._is_sparse(length + 1), self.is_watched, choice)
            self._count(token, length, decoder.step(self._cache, token, kind, sampler))

        try:
            self._attempt(f"reading a token after {length:,}", read)
        except CannotRecord as reason:
            _LOG.warning("tokens are read without a CUDA graph: %s", reason)
            self._decoder = None
            return self._step(token_id, sampler)
        try:
            next_kind = StepKind(self._is_sparse(length + 2), self.is_watched, choice)
            decoder.run_ahead(self._cache, next_kind, sampler)
        except Exception as error:
            # Nobody has asked for that step yet; whoever does is told.
            if not is_out_of_memory(error):
                raise
        return decoder

    def _count(self, token: int, length: int, result: StepResult) -> None:
        """Takes over a step whole, or on an error nothing of it."""
        try:
            self._take_over(token, length, result)
        except Exception:
            raise
        except BaseException:
            # Ctrl-C: half a token must not count.
            self._take_over(token, length, result)
            raise

    def _take_over(self, token: int, length: int, result: StepResult) -> None:
        """Makes a step up to `length` + 1 count; may be begun anew."""
        # What may fail comes first.
        if self._readings.records_selection or self.is_watched:
            self._readings.take_copy(result.reads, self._cache.blocks_of(length + 1), self.is_watched)
        # Nobody asks for most of them, and a copy is a launch between two graphs.
        self._logits, self._logits_are_lent = result.logits, True
        self.token_ids[length:] = [token]
        if self._cache.length == length:
            self._cache.commit(1, list(result.states))

    def keep_common(self, token_ids: Sequence[int]) -> int:
        """Forgets what does not begin `token_ids`, going back to the nearest checkpoint where needed.

        What stays was read under the final length of its own call, dense or sparse, and stays as it is.

        Args:
            token_ids: at least one.

        Returns:
            Tokens of `token_ids` that need not be read. All of them only where their last logits are known.

        Raises:
            InvalidRequest: no tokens.
        """
        if not len(token_ids):
            raise InvalidRequest("token_ids is empty; at least one token is needed")
        common = common_length(self.token_ids, list(token_ids))
        if common == self.length and (common < len(token_ids) or self._logits is not None):
            return common
        target = [
            known
            for known in self.checkpoints
            if known.position <= common and (known.position < len(token_ids) or known.logits is not None)
        ][-1]
        # Without linear states any position can be gone back to; one token is read again for its logits.
        anywhere = min(common, len(token_ids) - 1)
        if not self._network.config.lightning_layers and target.position < anywhere:
            target = Checkpoint(anywhere, (), None)
        self._go_back(target)
        return self.length

    def checkpoint(self) -> Checkpoint:
        """Keeps the linear layers' states at the present position; `rewind` comes back to it.

        Later checkpoints may push it out of `checkpoints`; it stays good for as long as the caller holds it.
        """
        if self.checkpoints and self.checkpoints[-1].position == self.length:
            return self.checkpoints[-1]
        made = self._cache.checkpoint(self.logits)
        self._valid.add(made)
        self.checkpoints.append(made)
        dropped = thin([known.position for known in self.checkpoints], CHECKPOINT_BUDGET_BYTES // max(1, made.nbytes))
        self.checkpoints = [known for known in self.checkpoints if known.position not in dropped]
        return made

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Forgets everything after `checkpoint`, exactly; later checkpoints are dropped.

        Raises:
            InvalidRequest: the checkpoint is of another session, or this one was rewound past it.
        """
        if checkpoint not in self._valid:
            raise InvalidRequest(
                f"the checkpoint at {checkpoint.position:,} is of another session, or this one was rewound past it"
            )
        self._go_back(checkpoint)

    def _go_back(self, target: Checkpoint) -> None:
        self._saves.cut(target.position)
        self._cache.rewind(target)
        self._logits, self._logits_are_lent = target.logits, False
        del self.token_ids[target.position :]
        self.checkpoints = [known for known in self.checkpoints if known.position <= target.position]
        self._valid = weakref.WeakSet(known for known in self._valid if known.position <= target.position)
        self._readings.clear()

    def fork(self) -> Session:
        """A second session with the same past; K/V is shared until one of them writes.

        Checkpoints of the past are good for both. The copy is not saved where this session is.
        """
        records = self._readings.records_selection
        copy = Session(
            self._network, self._cache.fork(), self._default_chunk, self.max_tokens, records, self._saves.model
        )
        copy._logits = self.logits
        copy.token_ids = list(self.token_ids)
        copy.checkpoints = list(self.checkpoints)
        copy._valid = weakref.WeakSet(self._valid)
        return copy

    def save(self, path: str | Path) -> None:
        """Saves the session into a folder of its own, for `Engine.restore`: all it holds but readings of the last call.

        Only what is new since the last save there is written. Interrupted anywhere, the folder holds what it held
        before. A session saved there before is replaced.

        Raises:
            InvalidRequest: the folder holds other files.
            BadSession: it cannot be written.
        """
        self._saves.save(path, self._contents())

    def save_behind(self, path: str | Path) -> None:
        """From now on, saves the session into a folder of its own while it reads.

        Raises:
            InvalidRequest: the folder holds other files, or another saved session.
        """
        self._saves.begin_behind(path, self.length)

    def read_saved(self, folder: Path, manifest: Manifest, text: bytes) -> None:
        """Takes into this empty session what is saved in `folder`; on an error it must be thrown away.

        Args:
            folder: where the files are.
            manifest, text: as `read_manifest` gave them; checked against the model.

        Raises:
            BadSession: a file is missing or damaged.
        """
        wide = torch.promote_types(self._network.dtype, torch.float32)
        logits = torch.empty(self._network.config.vocab_size, dtype=wide, device=self._network.device)
        self.token_ids, known = read_session(folder, manifest, self._cache, logits)
        self._logits, self._logits_are_lent = known[-1].logits if known else None, False
        kept = set(manifest.checkpoints)
        self.checkpoints += [checkpoint for checkpoint in known if checkpoint.position in kept]
        self._valid.update(self.checkpoints)
        self._saves.adopt(folder, manifest, text)

    def _contents(self) -> Contents:
        return Contents(self._cache, self.token_ids, self.logits, self.checkpoints)

    @property
    def logits(self) -> Tensor | None:
        """Logits [vocab] after the last token read, not to be written to; None before the first."""
        if self._logits_are_lent:
            assert self._logits is not None
            self._logits, self._logits_are_lent = self._logits.clone(), False
        return self._logits

    def selected_blocks(self, layer: int) -> Tensor | None:
        """Blocks selected in the last `prefill` or `step` call.

        Args:
            layer: index among all layers.

        Returns:
            int32 [n_kv_heads, queries, k], ascending, -1 padded; None where that call was dense.

        Raises:
            InvalidRequest: the session does not record, or the layer is not a sparse one.
        """
        return self._readings.selected_blocks(layer)

    @property
    def has_attention(self) -> bool:
        """Whether `attention_mass` has something to tell of the last call."""
        return self._readings.has_attention

    def attention_mass(self, layer: int) -> tuple[Tensor, Tensor]:
        """How the attention of the last token of the last call is shared out.

        Args:
            layer: index among all layers.

        Returns:
            its blocks, int32 [n_kv_heads, k], -1 padded (all of the context where the call was dense), and the
            attention of their tokens, float32 [n_kv_heads, k, block_size], summed over the heads of each group.

        Raises:
            InvalidRequest: the session was not watched in its last call, or the layer is no attention layer.
        """
        return self._readings.attention_mass(layer)

    def linear_state(self, layer: int) -> Tensor:
        """State [heads, d_k, d_v] of a lightning layer, float32 (float64 in a float64 run).

        Raises:
            InvalidRequest: the layer is not a lightning layer.
        """
        layers = self._network.config.lightning_layers
        if layer not in layers:
            raise InvalidRequest(f"layer {layer} has no linear state; lightning layers are {layers}")
        return self._cache.states[layers.index(layer)].clone()

    @property
    def traffic(self) -> Traffic | None:
        """Blocks that tokens read one at a time found on the device, and those fetched from host memory, since the
        engine was loaded and in all of its sessions; waits for the device. None where all K/V is on the device."""
        return self._cache.traffic

    def _is_sparse(self, final_length: int) -> bool:
        sparse = self._network.config.sparse
        return sparse is not None and final_length >= sparse.dense_len

    def _checked(self, token_ids: Sequence[int], chunk_size: int | None, final_length: int | None) -> list[int]:
        """The ids as plain integers; raises what `prefill` says."""
        ids = checked_ids(token_ids, self._network.config.vocab_size, self.length, chunk_size, final_length)
        self.check_fits(max(self.length + len(ids), final_length or 0))
        return ids

    def check_fits(self, needed: int) -> None:
        """Raises ContextTooLong if the session cannot become `needed` tokens long."""
        if needed > self.max_tokens:
            raise ContextTooLong(
                f"{needed:,} tokens are asked for and {self.max_tokens:,} fit; leave out at least "
                f"{needed - self.max_tokens:,}",
                needed_tokens=needed,
                limit_tokens=self.max_tokens,
            )
