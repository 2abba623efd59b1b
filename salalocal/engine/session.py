"""One conversation's tokens and memory: prefill in chunks, step, checkpoint, rewind, fork. Knows no text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import psutil
import torch
from torch import Tensor

from salalocal.cache.session_cache import Checkpoint, SessionCache
from salalocal.engine.progress import Progress, RateMeter
from salalocal.engine.schedule import chunk_edges, common_length, thin
from salalocal.errors import Cancelled, ContextTooLong, InvalidRequest
from salalocal.model.network import Network

# States of older checkpoints are thinned out beyond this.
CHECKPOINT_BUDGET_BYTES = 1 << 30


class Session:
    """A growing sequence of tokens that a network has read.

    Made by `Engine.new_session`. Not for use from two threads at once.

    Args:
        network: the model.
        cache: what has been read.
        default_chunk: tokens per chunk where a call names none.
        max_tokens: the longest the session may become.
        record_selection: keep which blocks the last call selected.
    """

    def __init__(
        self, network: Network, cache: SessionCache, default_chunk: int, max_tokens: int, record_selection: bool
    ) -> None:
        self._network = network
        self._cache = cache
        self._default_chunk = default_chunk
        self.max_tokens = max_tokens
        self._records = record_selection
        self._selection: dict[int, list[Tensor]] = {}
        self._logits: Tensor | None = None
        self.token_ids: list[int] = []
        self.checkpoints: list[Checkpoint] = [cache.checkpoint(None)]

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
            checkpoints_at: absolute positions at which to keep a checkpoint in `checkpoints`.
            all_logits: return logits of every token, not only of the last.
            on_progress: called after every chunk.
            cancel: looked at before every chunk.

        Returns:
            float32 (float64 in a float64 run) [vocab] of the last token, or [len(token_ids), vocab].

        Raises:
            InvalidRequest: no tokens, an id out of range, chunk_size < 1, a final_length too short.
            ContextTooLong: more tokens than the session may hold; nothing was read.
            Cancelled: with the tokens held; call again with the rest and the same final_length.
        """
        rows: list[Tensor] = []
        steps = self.read(token_ids, chunk_size, final_length, checkpoints_at, cancel, rows if all_logits else None)
        for progress in steps:
            if on_progress is not None:
                on_progress(progress)
        assert self._logits is not None
        return torch.cat(rows) if all_logits else self._logits

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
        """
        self._check(token_ids, chunk_size, final_length)
        start, stop = self.length, self.length + len(token_ids)
        wanted = set(checkpoints_at)
        is_sparse = self._is_sparse(stop if final_length is None else final_length)
        ids = torch.tensor(token_ids, dtype=torch.int64).to(self._network.device)
        self._selection = {}
        meter = RateMeter()
        for edge in chunk_edges(start, stop, chunk_size or self._default_chunk, wanted):
            if cancel is not None and cancel.is_set():
                raise Cancelled(self.length)
            begin, end = self.length - start, edge - start
            with torch.inference_mode():
                hidden = self._network.read(ids[begin:end], self._cache, is_sparse, self._record)
                logits = self._network.logits(hidden if all_logits is not None else hidden[-1:])
            if all_logits is not None:
                all_logits.append(logits)
            self._logits = logits[-1]
            self.token_ids.extend(token_ids[begin:end])
            if edge in wanted:
                self.checkpoint()
            yield self._progress(end, stop - start, meter.mark(end))

    def step(self, token_id: int) -> Tensor:
        """Reads one token; returns float32 logits [vocab] for the next. Errors as for `prefill`."""
        return self.prefill((token_id,))

    def keep_common(self, token_ids: Sequence[int]) -> int:
        """Forgets what does not begin `token_ids`, going back to the nearest checkpoint where needed.

        Returns:
            Tokens of `token_ids` that need not be read. All of them only where their last logits are known.
        """
        common = common_length(self.token_ids, token_ids)
        if common == self.length and (common < len(token_ids) or self._logits is not None):
            return common
        if not self._network.config.lightning_layers:
            # Without linear states any position can be gone back to; one token is read again for its logits.
            target = Checkpoint(min(common, len(token_ids) - 1), (), None)
            self.checkpoints.append(target)
        else:
            usable = [
                known
                for known in self.checkpoints
                if known.position <= common and (known.position < len(token_ids) or known.logits is not None)
            ]
            target = usable[-1]
        self.rewind(target)
        return self.length

    def checkpoint(self) -> Checkpoint:
        """Keeps the linear layers' states at the present position; `rewind` comes back to it."""
        if self.checkpoints[-1].position != self.length:
            self.checkpoints.append(self._cache.checkpoint(self._logits))
            each = max(1, self.checkpoints[-1].nbytes)
            dropped = thin([known.position for known in self.checkpoints], CHECKPOINT_BUDGET_BYTES // each)
            self.checkpoints = [known for known in self.checkpoints if known.position not in dropped]
        return self.checkpoints[-1]

    def rewind(self, checkpoint: Checkpoint) -> None:
        """Forgets everything after `checkpoint`, exactly; later checkpoints are dropped.

        Raises:
            InvalidRequest: the checkpoint is not one of this session's (any more).
        """
        if not any(known is checkpoint for known in self.checkpoints):
            raise InvalidRequest(
                f"the checkpoint at {checkpoint.position:,} is not one of this session; it was rewound past it"
            )
        self._cache.rewind(checkpoint)
        self._logits = checkpoint.logits
        del self.token_ids[checkpoint.position :]
        self.checkpoints = [known for known in self.checkpoints if known.position <= checkpoint.position]
        self._selection = {}

    def fork(self) -> Session:
        """A second session with the same past; K/V is shared until one of them writes."""
        copy = Session(self._network, self._cache.fork(), self._default_chunk, self.max_tokens, self._records)
        copy._logits = self._logits
        copy.token_ids = list(self.token_ids)
        copy.checkpoints = list(self.checkpoints)
        return copy

    @property
    def logits(self) -> Tensor | None:
        """Logits [vocab] after the last token read; None before the first."""
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
        if not self._records:
            raise InvalidRequest("selected_blocks needs a session made with record_selection=True")
        if layer not in self._network.config.sparse_layers:
            raise InvalidRequest(f"layer {layer} selects no blocks; sparse are {self._network.config.sparse_layers}")
        parts = self._selection.get(layer)
        return None if not parts else torch.cat(parts, dim=1)

    def linear_state(self, layer: int) -> Tensor:
        """State [heads, d_k, d_v] of a lightning layer, float32 (float64 in a float64 run).

        Raises:
            InvalidRequest: the layer is not a lightning layer.
        """
        layers = self._network.config.lightning_layers
        if layer not in layers:
            raise InvalidRequest(f"layer {layer} has no linear state; lightning layers are {layers}")
        return self._cache.states[layers.index(layer)].clone()

    def _record(self, layer: int, blocks: Tensor) -> None:
        if self._records:
            self._selection.setdefault(layer, []).append(blocks)

    def _is_sparse(self, final_length: int) -> bool:
        sparse = self._network.config.sparse
        return sparse is not None and final_length >= sparse.dense_len

    def _check(self, token_ids: Sequence[int], chunk_size: int | None, final_length: int | None) -> None:
        if not len(token_ids):
            raise InvalidRequest("token_ids is empty; at least one token is needed")
        vocab = self._network.config.vocab_size
        if min(token_ids) < 0 or max(token_ids) >= vocab:
            raise InvalidRequest(f"token_ids holds an id outside 0 to {vocab - 1}")
        if chunk_size is not None and chunk_size < 1:
            raise InvalidRequest(f"chunk_size is {chunk_size}; at least 1 is needed")
        stop = self.length + len(token_ids)
        if final_length is not None and final_length < stop:
            raise InvalidRequest(f"final_length is {final_length:,}, but the session reaches {stop:,} tokens")
        self.check_fits(max(stop, final_length or 0))

    def check_fits(self, needed: int) -> None:
        """Raises ContextTooLong if the session cannot become `needed` tokens long."""
        if needed > self.max_tokens:
            raise ContextTooLong(
                f"{needed:,} tokens are asked for and {self.max_tokens:,} fit; leave out at least "
                f"{needed - self.max_tokens:,}",
                needed_tokens=needed,
                limit_tokens=self.max_tokens,
            )

    def _progress(self, done: int, total: int, rate: float) -> Progress:
        device = self._network.device
        return Progress(
            done_tokens=done,
            total_tokens=total,
            tokens_per_second=rate,
            seconds_left=(total - done) / max(rate, 1e-9),
            device_bytes=torch.cuda.memory_allocated(device) if device.type == "cuda" else 0,
            host_bytes=psutil.Process().memory_info().rss,
        )
