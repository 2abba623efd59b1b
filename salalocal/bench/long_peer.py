"""The dense peer's rows of `bench long`: a prompt in one shot, by the faster of PyTorch's backends at its length.

Knows no time but the wall clock's, and nothing of our own model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch

from salalocal.bench.clock import settle, wall_milliseconds
from salalocal.bench.dense_peer import Backend, DensePeer, DenseShape, attend
from salalocal.bench.long import let_go
from salalocal.bench.long_rows import OUT_OF_MEMORY, LongRow, LongTable
from salalocal.bench.process_memory import peak_resident_bytes, reset_peak
from salalocal.engine.gpu_memory import peak_bytes
from salalocal.errors import EngineFailure

# The first products of a process find their kernels.
_WARM_UP_TOKENS = 4096


def missing_peers(lengths: tuple[int, ...], table: LongTable, device: str) -> list[LongRow]:
    """The rows of these lengths that `table` lacks, without figures; shorter texts first."""
    rows = (LongRow("dense peer", tokens, "everything", "", None, 0, False, device, "") for tokens in lengths)
    return [
        row
        for row in sorted(rows, key=lambda row: row.tokens)
        if table.find(row.setting, row.tokens, staged=True) is None
    ]


def time_peer(
    make: Callable[[], DensePeer],
    lengths: tuple[int, ...],
    table: LongTable,
    device: str,
    run: str,
    on_row: Callable[[LongRow], None],
    backends: tuple[Backend, ...] = ("flash", "cudnn"),
) -> None:
    """Measures the peer at the lengths that `table` lacks, and adds the rows.

    Args:
        make: the model; called where a row is missing.
        lengths: of prompts, in tokens.
        table: takes the rows, one that ran out of memory too.
        device: the card's name.
        run: this run's name.
        on_row: told each row as it is there.
        backends: of the attention, of which the faster one at a length reads it.

    Raises:
        EngineFailure: no backend works here, or the model computed NaN or Inf.
    """
    lacking = missing_peers(lengths, table, device)
    if not lacking:
        return
    peer = make()
    where = peer.embedding.device
    for row in lacking:
        try:
            row = _read_prompt(peer, replace(row, run=run), backends)
        except torch.OutOfMemoryError:
            row = replace(row, run=run, note=OUT_OF_MEMORY)
        peer.release()
        let_go(where)
        table.add(row)
        on_row(row)


def _read_prompt(peer: DensePeer, row: LongRow, backends: tuple[Backend, ...]) -> LongRow:
    shape, device = peer.shape, peer.embedding.device
    peer.reserve(row.tokens)
    times = {name: taken for name in backends if (taken := attention_ms(shape, row.tokens, name, peer)) is not None}
    let_go(device)
    if not times:
        raise EngineFailure(f"none of PyTorch's attention backends {', '.join(backends)} works on this device")
    fastest = min(times, key=lambda name: times[name])
    ids = torch.randint(shape.vocab, (row.tokens,), generator=torch.Generator().manual_seed(0))
    peer.read(ids[:_WARM_UP_TOKENS].to(device), fastest)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reset_peak()
    settle(device)
    begun = perf_counter()
    logits = peer.read(ids.to(device), fastest)
    int(logits.argmax())
    seconds = perf_counter() - begun
    if not logits.isfinite().all():
        raise EngineFailure("the dense peer computed NaN or Inf instead of logits; its times mean nothing")
    row = replace(
        row,
        prefill=fastest,
        ttft_seconds=seconds,
        peak_host_bytes=peak_resident_bytes(),
        weight_bytes=shape.matrices * peer.embedding.element_size(),
        attention_ms={str(name): taken for name, taken in times.items()},
    )
    if device.type != "cuda":
        return row
    peak = peak_bytes(device)
    return replace(row, peak_device_bytes=peak.nbytes, peak_device_by=peak.by)


def attention_ms(shape: DenseShape, tokens: int, backend: Backend, peer: DensePeer) -> float | None:
    """One layer's attention over a prompt, the second of two calls; None where the device has no such backend."""
    device, dtype = peer.embedding.device, peer.embedding.dtype

    def drawn(heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, shape.head_dim, dtype=dtype, device=device)

    with torch.inference_mode():
        q, k, v = drawn(shape.heads), drawn(shape.kv_heads), drawn(shape.kv_heads)
        try:
            attend(q, k, v, backend)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return None
        return wall_milliseconds(lambda: attend(q, k, v, backend), device)
