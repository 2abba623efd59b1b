"""Pieces of an op side by side, one thread per core, each thread computing alone.

PyTorch shares out every single operation and waits at its end for the slowest core. Ops made of many small operations
(tens of microseconds) lose by that, and where another program takes one core they stand still: reading went from 1,650
to 60 tokens per second beside one busy process. Here threads meet only when all pieces are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier

import torch


def team_size() -> int:
    """Threads that work side by side: as many as PyTorch would use for one operation."""
    return torch.get_num_threads()


def run_all(pieces: Sequence[Callable[[], None]]) -> None:
    """Runs pieces that write to different places, in any order, and returns when all are done.

    An error of a piece is raised once no piece runs any more.
    """
    size = team_size()
    if size == 1 or len(pieces) == 1:
        for piece in pieces:
            piece()
        return
    # Inference mode belongs to a thread; without it a piece may not write to what was made inside.
    inference = torch.is_inference_mode_enabled()
    futures = [_threads(size).submit(_run, piece, inference) for piece in pieces]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def _run(piece: Callable[[], None], inference: bool) -> None:
    with torch.inference_mode(inference), torch.no_grad():
        piece()


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """`count` threads that PyTorch does not divide further. Kept: the first product of a new thread is slow."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="salalocal-op")
    started = Barrier(count)
    wait([pool.submit(_compute_alone, started) for _ in range(count)])
    # What a thread sets for itself is also what threads started later begin with.
    torch.set_num_threads(count)
    return pool


def _compute_alone(started: Barrier) -> None:
    # A thread takes the common number at its first question, which must not come after the number of its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
    # No thread may take two of these.
    started.wait()
