"""What rounding K and V to 8 bits changes: blocks that are selected, and logits, at the end of a long text.

One model reads the same text once for each way that host memory keeps K and V. The last queries of each reading are set
beside those of the first, which rounds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from salalocal.documents import Document
from salalocal.engine.engine import Engine
from salalocal.engine.load import load
from salalocal.errors import InvalidRequest
from salalocal.evaluate.filler import Filler
from salalocal.sparse_config import SparseConfig

# Queries at the end of the text that are looked at.
QUERIES = 1024
# On the device for K and V: more than one step of the released model reads in float32.
_KV_BUDGET = 256 << 20
_PARAGRAPHS = 500


@dataclass(frozen=True)
class KvRow:
    """One reading beside the first.

    Attributes:
        kv: how host memory kept K and V.
        chunk_tokens: read at once.
        changed: by sparse layer, the share of the first reading's free picks that this one does not have: of the blocks
            that queries chose beyond the initial and the local ones.
        logits_rms: of the difference, by that of the logits.
        divergence: mean Kullback-Leibler divergence of the next token, in nats.
        same_token: share of queries with the same likeliest token.
    """

    kv: str
    chunk_tokens: int
    changed: tuple[float, ...]
    logits_rms: float
    divergence: float
    same_token: float

    @property
    def changed_share(self) -> float:
        """Of all layers, which make equally many picks."""
        return sum(self.changed) / len(self.changed)


@dataclass(frozen=True)
class _Reading:
    """Selected blocks [Hkv, Q, K] by sparse layer, and logits [Q, V], of the last Q tokens."""

    selected: list[Tensor]
    logits: Tensor


def compare_kv(
    model: str | Path,
    document: Document,
    tokens: int,
    on_row: Callable[[KvRow], None],
    device: str = "auto",
    dtype: str = "auto",
    queries: int = QUERIES,
    kv_budget: int = _KV_BUDGET,
) -> list[KvRow]:
    """Reads a text with K and V in host memory: in full, in full by chunks half as long, in int8 and in fp8.

    Args:
        model, device, dtype, kv_budget: as for `load`.
        document: the end of the text; before it comes made-up prose, where it is shorter than `tokens`, and of a longer
            one its beginning is read.
        tokens: of the text.
        on_row: told each row as it is there; the first reading makes none.
        queries: of the text's end that are looked at.

    Raises:
        InvalidRequest: the model selects no blocks in so short a text.
        As `load`, and ContextTooLong where the text does not fit.
    """
    ids: list[int] = []
    first: _Reading | None = None
    rows: list[KvRow] = []
    for kv, parts in (("full", 1), ("full", 2), ("int8", 1), ("fp8", 1)):
        engine = load(model, device=device, dtype=dtype, kv_budget=kv_budget, kv=kv)
        sparse = engine.config.sparse
        assert sparse is not None
        ids = ids or text_ids(engine, document, tokens)
        chunk = engine.default_chunk // parts
        reading = _read(engine, ids, chunk, queries)
        # The next one takes as much.
        del engine
        if first is None:
            first = reading
            continue
        rows.append(_row(kv, chunk, first, reading, sparse, tokens))
        on_row(rows[-1])
    return rows


def text_ids(engine: Engine, document: Document, tokens: int) -> list[int]:
    """The document's first `tokens` tokens, or made-up prose and the whole of it."""
    ids = engine.encode(document)[:tokens]
    prose, filler = list[int](), Filler("kv")
    while len(ids) + len(prose) < tokens:
        paragraphs = (" ".join(filler.paragraph()) for _ in range(_PARAGRAPHS))
        prose += engine.encode("\n\n".join(paragraphs) + "\n\n")
    return prose[: tokens - len(ids)] + ids


def _read(engine: Engine, ids: Sequence[int], chunk: int, queries: int) -> _Reading:
    session = engine.new_session(record_selection=True)
    session.check_fits(len(ids))
    last = len(ids) - queries
    # A call for each chunk: what it selected is forgotten with the next.
    for at in range(0, last, chunk):
        session.prefill(ids[at : min(at + chunk, last)], chunk, final_length=len(ids))
    logits = session.prefill(ids[last:], chunk, final_length=len(ids), all_logits=True)
    selected: list[Tensor] = []
    for layer in engine.config.sparse_layers:
        blocks = session.selected_blocks(layer)
        if blocks is None:
            raise InvalidRequest(f"{engine.name} reads all of {len(ids):,} tokens: give it a longer text")
        selected.append(blocks.cpu())
    return _Reading(selected, logits.cpu())


def _row(kv: str, chunk: int, first: _Reading, other: _Reading, sparse: SparseConfig, tokens: int) -> KvRow:
    changed = [changed_share(one, two, sparse, tokens) for one, two in zip(first.selected, other.selected, strict=True)]
    expected, found = first.logits.log_softmax(-1), other.logits.log_softmax(-1)
    return KvRow(
        kv,
        chunk,
        tuple(changed),
        float((other.logits - first.logits).square().mean().sqrt() / first.logits.square().mean().sqrt()),
        float((expected.exp() * (expected - found)).sum(-1).mean()),
        float((expected.argmax(-1) == found.argmax(-1)).float().mean()),
    )


def changed_share(one: Tensor, other: Tensor, sparse: SparseConfig, tokens: int) -> float:
    """The share of the free picks of `one` that are not in `other`; 0 without any.

    Args:
        one, other: int32 [Hkv, Q, K], -1 padded, of the last Q queries.
        sparse: which blocks are read anyway.
        tokens: of the text.
    """
    blocks, count = torch.arange(-(-tokens // sparse.block_size) + 1), one.shape[1]
    own = torch.arange(tokens - count, tokens)[:, None] // sparse.block_size
    is_free = (blocks >= sparse.init_blocks) & (blocks < own - sparse.local_blocks)
    picked, kept = (
        # The last is for -1.
        torch.zeros(*each.shape[:2], len(blocks), dtype=torch.bool).scatter_(2, each.long() % len(blocks), True)
        for each in (one, other)
    )
    picked &= is_free
    return float((picked & ~kept).sum() / picked.sum().clamp(min=1))
