"""Memory while work goes on: how much is free, and what happens where it runs out. Knows no session.

What runs out of memory is tried once more after everything that can be was given back, and then refused in one
sentence. PyTorch, NumPy and CUDA's libraries each say it in their own way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch

from salalocal.engine.gpu_memory import allowed_bytes
from salalocal.errors import DoesNotFit
from salalocal.planner import usable_bytes

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

# CUDA and Triton, PyTorch on a processor, cuBLAS.
_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_ASKED_FOR = re.compile(r"allocate ([\d.]+) ?(bytes|KiB|MiB|GiB|TiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True)
class Attempt:
    """One way to do something.

    Attributes:
        call: does it, or fails and leaves everything as it was.
        note: what is done, for the log, where it comes after one that ran out of memory.
    """

    call: Callable[[], object]
    note: str = "trying once more without what was kept for later"


def attempt(what: str, attempts: Sequence[Attempt], device: torch.device, give_back: Callable[[], None]) -> None:
    """Does the first of `attempts` that memory is enough for.

    Args:
        what: is done, for messages: "reading 100 tokens after 2,000".
        attempts: in order; each after the first is announced in the log.
        device: that computes.
        give_back: called after each failure.

    Raises:
        DoesNotFit: memory was not enough for any of them.
    """
    is_cuda, asked = False, None
    for number, each in enumerate(attempts, 1):
        try:
            each.call()
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_cuda = device.type == "cuda" and not _is_of_host(error)
            asked = _asked_bytes(error)
        # Not before the error is forgotten: its traceback holds what was computed.
        give_back()
        if number < len(attempts):
            _LOG.warning("%s ran out of %s; %s", what, _kind(is_cuda), attempts[number].note)
    free = available_bytes(device if is_cuda else torch.device("cpu"))
    wanted = "" if asked is None else f"{asked / 2**20:,.0f} MiB more were asked for and "
    raise DoesNotFit(
        f"{what} ran out of {_kind(is_cuda)}: {wanted}{free / 2**20:,.0f} MiB are free; close other programs or "
        "sessions, or read less at a time; what was read before is kept",
        needed_bytes=asked or 0,
        available_bytes=free,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what an error says, of a GPU or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def available_bytes(device: torch.device) -> int:
    """Memory that weights and caches may take now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        allowed = allowed_bytes(device)
        if allowed < total:
            # Under a cap, what CUDA itself takes is left out already, and the cap is kept whatever is taken.
            return min(usable_bytes(free), max(0, allowed - torch.cuda.memory_allocated(device)))
    else:
        free = psutil.virtual_memory().available
    return usable_bytes(free)


def _is_of_host(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _asked_bytes(error: BaseException) -> int | None:
    found = _ASKED_FOR.search(str(error))
    return None if found is None else round(float(found[1]) * _UNITS[found[2]])


def _kind(is_cuda: bool) -> str:
    return "GPU memory" if is_cuda else "main memory"
