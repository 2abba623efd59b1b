"""How far a reading is and how long it will take. Knows no tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Progress:
    """Progress of one prefill call.

    Attributes:
        done_tokens, total_tokens: of this call.
        tokens_per_second: over the last chunks, so that it follows a slow-down.
        seconds_left: at that rate.
        device_bytes: held on the GPU by this process's tensors; 0 on a CPU.
        host_bytes: resident memory of the process.
    """

    done_tokens: int
    total_tokens: int
    tokens_per_second: float
    seconds_left: float
    device_bytes: int
    host_bytes: int

    @staticmethod
    def now(done_tokens: int, total_tokens: int, tokens_per_second: float, device: torch.device) -> Progress:
        """With the time left at this rate, and the memory held now."""
        return Progress(
            done_tokens=done_tokens,
            total_tokens=total_tokens,
            tokens_per_second=tokens_per_second,
            seconds_left=(total_tokens - done_tokens) / max(tokens_per_second, 1e-9),
            device_bytes=torch.cuda.memory_allocated(device) if device.type == "cuda" else 0,
            host_bytes=psutil.Process().memory_info().rss,
        )


class RateMeter:
    """Tokens per second over the last `window` reports."""

    def __init__(self, window: int = 8) -> None:
        self._window = window
        self._marks = [(time.perf_counter(), 0)]

    def mark(self, done_tokens: int) -> float:
        """Notes that `done_tokens` are done now; returns the rate."""
        self._marks.append((time.perf_counter(), done_tokens))
        del self._marks[: -self._window - 1]
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / max(now - began, 1e-9)
