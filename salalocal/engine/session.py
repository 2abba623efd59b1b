"""One conversation's tokens and memory: prefill in chunks, step, checkpoint, rewind, fork. Knows no text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from salalocal.cache.manifest import Manifest, ModelIdentity
from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.cache.tiered_store import Traffic
from salalocal.engine.checkpoints import Checkpoints
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.progress import Progress, RateMeter
from salalocal.engine.reader import Reader
from salalocal.engine.sampling import Sampler
from salalocal.engine.saves import Saves
from salalocal.engine.schedule import chunk_edges, common_length
from salalocal.engine.session_files import Contents
from salalocal.engine.token_ids import check_length, checked_ids
from salalocal.errors import Cancelled, InvalidRequest
from salalocal.model.network import Network


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
        self._reader = Reader(network, cache, max_tokens, record_selection)
        self._past = Checkpoints()
        if not self.length:
            self.checkpoint()

    @property
    def length(self) -> int:
        """Tokens read."""
        return self._cache.length

    @property
    def token_ids(self) -> list[int]:
        """The tokens read."""
        return self._reader.token_ids

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """Those kept, by position; the first is at 0. Thinned out beyond CHECKPOINT_BUDGET_BYTES."""
        return self._past.kept

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
            checkpoints_at: absolute positions, from the present length on, at which to keep one of `checkpoints`.
            all_logits: return logits of every token, not only of the last.
            on_progress: called after every chunk.
            cancel: looked at before every chunk.

        Returns:
            float32 (float64 in a float64 run) [vocab] of the last token, or [len(token_ids), vocab]; the caller's own.

        Raises:
            InvalidRequest: no tokens, an id outside the vocabulary, chunk_size < 1, a final_length too short.
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
        return torch.cat(rows) if all_logits else self._reader.last_logits().clone()

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
        token_ids, reader = self._checked(token_ids, chunk_size, final_length), self._reader
        start, stop = self.length, self.length + len(token_ids)
        wanted = set(checkpoints_at)
        is_sparse = reader.is_sparse(stop if final_length is None else final_length)
        reader.readings.clear()
        if start in wanted:
            reader.attempt(f"a checkpoint after {start:,} tokens", self.checkpoint)
        reader.attempt(f"room for {stop:,} tokens", lambda: self._cache.reserve(stop - start))
        meter = RateMeter()
        at, size, is_halved = start, chunk_size or self._default_chunk, False
        while at < stop:
            edge = chunk_edges(at, min(at + size, stop), size, wanted)[0]
            if cancel is not None and cancel.is_set():
                self._saves.after_chunk(self._contents(), is_checkpoint=True)
                raise Cancelled(self.length)
            if self.length != at:
                raise InvalidRequest(f"the session went from {at:,} to {self.length:,} tokens while it was being read")
            reader.read(token_ids[at - start : edge - start], is_sparse, self.is_watched, all_logits, is_halved)
            if self.length < edge:
                edge, size, is_halved = self.length, self.length - at, True
            at = edge
            if edge in wanted:
                reader.attempt(f"a checkpoint after {edge:,} tokens", self.checkpoint)
            # Not after every token of an answer.
            self._saves.after_chunk(self._contents(), edge in wanted or 1 < edge - start == stop - start)
            yield Progress.now(edge - start, stop - start, meter.mark(edge - start), self._network.device)

    def step(self, token_id: int) -> Tensor:
        """Reads one token; returns float32 logits [vocab] for the next. Errors as for `prefill`: where memory runs out,
        the step is tried once more before DoesNotFit."""
        self._step(token_id, None)
        return self._reader.last_logits().clone()

    def step_and_choose(self, token_id: int, sampler: Sampler) -> int:
        """Reads one token and chooses the next. Errors as for `prefill` and `Sampler.accept`."""
        decoder = self._step(token_id, sampler)
        return sampler(self._reader.last_logits()) if decoder is None else sampler.accept(decoder.chosen())

    @property
    def launched(self) -> int:
        """Tokens read, and one more where the next step has been begun ahead of its token."""
        return self._reader.launched

    def _step(self, token_id: int, sampler: Sampler | None) -> DecodeGraph | None:
        """Reads one token; returns what read it, where that was a graph."""
        (token,) = self._checked((token_id,), None, None)
        decoder = self._reader.step(token, self.is_watched, sampler)
        if decoder is None:
            self.prefill((token,))
        return decoder

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
        if common == self.length and (common < len(token_ids) or self._reader.knows_logits):
            return common
        self._go_back(self._past.nearest(common, len(token_ids)))
        return self.length

    def checkpoint(self) -> Checkpoint:
        """Keeps the linear layers' states at the present position; `rewind` comes back to it.

        Later checkpoints may push it out of `checkpoints`; it stays good for as long as the caller holds it.
        """
        known = self._past.at(self.length)
        if known is None:
            known = self._cache.checkpoint(self.logits)
            self._past.add(known)
        return known

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Forgets everything after `checkpoint`, exactly; later checkpoints are dropped.

        Raises:
            InvalidRequest: the checkpoint is of another session, or this one was rewound past it.
        """
        if checkpoint not in self._past:
            raise InvalidRequest(
                f"the checkpoint at {checkpoint.position:,} is of another session, or this one was rewound past it"
            )
        self._go_back(checkpoint)

    def _go_back(self, target: Checkpoint) -> None:
        self._saves.cut(target.position)
        self._reader.go_back(target)
        self._past.cut(target.position)

    def fork(self) -> Session:
        """A second session with the same past; K/V is shared until one of them writes.

        Checkpoints of the past are good for both. The copy is not saved where this session is.
        """
        records, model = self._reader.readings.records_selection, self._saves.model
        copy = Session(self._network, self._cache.fork(), self._default_chunk, self.max_tokens, records, model)
        copy._reader.stand_at(list(self.token_ids), self.logits)
        copy._past = self._past.fork()
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
        """Takes into this empty session what is saved in `folder`, whose `read_manifest` was checked against the model.

        Raises:
            BadSession: a file is missing or damaged; the session must be thrown away.
        """
        self._past.adopt(self._reader.read_saved(folder, manifest), set(manifest.checkpoints))
        self._saves.adopt(folder, manifest, text)

    def _contents(self) -> Contents:
        return Contents(self._cache, self.token_ids, self.logits, self.checkpoints)

    @property
    def logits(self) -> Tensor | None:
        """Logits [vocab] after the last token read, not to be written to; None before the first."""
        return self._reader.logits

    def selected_blocks(self, layer: int) -> Tensor | None:
        """Blocks selected in the last `prefill` or `step` call.

        Args:
            layer: index among all layers.

        Returns:
            int32 [n_kv_heads, queries, k], ascending, -1 padded; None where that call was dense.

        Raises:
            InvalidRequest: the session does not record, or the layer is not a sparse one.
        """
        return self._reader.readings.selected_blocks(layer)

    @property
    def has_attention(self) -> bool:
        """Whether `attention_mass` has something to tell of the last call."""
        return self._reader.readings.has_attention

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
        return self._reader.readings.attention_mass(layer)

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

    def _checked(self, token_ids: Sequence[int], chunk_size: int | None, final_length: int | None) -> list[int]:
        """The ids as plain integers; raises what `prefill` says."""
        vocab = self._network.config.vocab_size
        return checked_ids(token_ids, vocab, self.length, self.max_tokens, chunk_size, final_length)

    def check_fits(self, needed: int) -> None:
        """Raises ContextTooLong if the session cannot become `needed` tokens long."""
        check_length(needed, self.max_tokens)
