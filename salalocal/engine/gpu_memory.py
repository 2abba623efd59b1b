"""What this process holds on a GPU as NVML counts it, CUDA's own part included, and a hard cap on that.

Knows no model. PyTorch's allocator is given a limit; what CUDA takes besides (its context, kernels' code, recorded
graphs) is measured and left outside of it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from salalocal.errors import DoesNotFit

# For what CUDA takes after the cap was set: more kernels, more recorded graphs.
_GROWTH_BYTES = 128 << 20
_QUERY = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 20


@dataclass(frozen=True)
class Held:
    """Memory of a GPU that is taken.

    Attributes:
        nbytes: so much.
        by: "process", this one's as NVML counts it; "card", all that is taken on the card, where NVML does not know
            this process by its number, as in most containers. That is the same where nothing else uses the card, and
            else more.
    """

    nbytes: int
    by: Literal["process", "card"]


def held(device: torch.device) -> Held:
    """What this process holds on `device`, its CUDA context included; it has one afterwards."""
    free, total = torch.cuda.mem_get_info(device)
    for ask in (_by_library, _by_tool):
        found = ask(device)
        if found:
            return Held(found, "process")
    return Held(total - free, "card")


def outside_bytes(device: torch.device) -> int:
    """The part of `held` that is not PyTorch's: CUDA's context, code and graphs."""
    # A product first, so that the library for it is there.
    one = torch.ones(16, 16, device=device)
    (one @ one).sum().item()
    return max(0, held(device).nbytes - torch.cuda.memory_reserved(device))


def peak_bytes(device: torch.device) -> Held:
    """The most that this process has held since PyTorch's peak was reset, CUDA's part being what it is now."""
    now = held(device)
    outside = now.nbytes - torch.cuda.memory_reserved(device)
    return Held(torch.cuda.max_memory_reserved(device) + outside, now.by)


def cap(device: torch.device, cap_bytes: int, weight_bytes: int, name: str) -> int:
    """From now on PyTorch gets so little of `device` that the process holds no more than `cap_bytes` there.

    What exceeds it fails with `torch.OutOfMemoryError`. What others hold counts too where `Held.by` is "card".

    Args:
        device: a GPU.
        cap_bytes: for everything the process holds there.
        weight_bytes: of the model that is to be read.
        name: the model's, for the message.

    Returns:
        bytes that PyTorch may take.

    Raises:
        DoesNotFit: the weights alone exceed what is left of the cap; no limit was set.
    """
    outside = outside_bytes(device) + _GROWTH_BYTES
    left = cap_bytes - outside
    if weight_bytes > left:
        raise DoesNotFit(
            f"{name}: the weights take {_gib(weight_bytes)}, and of {_gib(cap_bytes)} of GPU memory CUDA itself takes "
            f"{_gib(outside)}; allow at least {_gib(weight_bytes + outside)}",
            needed_bytes=weight_bytes + outside,
            available_bytes=cap_bytes,
        )
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, left / total), _number(device))
    # Room between tensors of other sizes would be lost; PyTorch has no public name for this, and not in every version.
    settings: Callable[[str], None] | None = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if settings is not None:
        settings("expandable_segments:True")
    return left


def lift_cap(device: torch.device) -> None:
    """PyTorch gets all of `device` again."""
    torch.cuda.set_per_process_memory_fraction(1.0, _number(device))


def allowed_bytes(device: torch.device) -> int:
    """What PyTorch may take of `device` in all; the whole card without a cap."""
    _, total = torch.cuda.mem_get_info(device)
    # PyTorch has not always told.
    fraction: Callable[[int], float] | None = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return total if fraction is None else int(total * fraction(_number(device)))


def _number(device: torch.device) -> int:
    """The card's number: unlike the rest of PyTorch, limits are refused for "cuda" without one."""
    return torch.cuda.current_device() if device.index is None else device.index


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _by_library(device: torch.device) -> int:
    """NVML's figure through its Python package; 0 where there is no package or NVML does not know us."""
    try:
        import pynvml

        pynvml.nvmlInit()
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    except Exception:  # noqa: BLE001 - the package has errors of its own, and may not be there
        return 0
    return sum(process.usedGpuMemory or 0 for process in running if process.pid == os.getpid())


def _by_tool(_device: torch.device) -> int:
    """NVML's figure through nvidia-smi, which counts in MiB; of all cards, of which a process here uses one."""
    try:
        told = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_QUERY_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    rows = (line.split(",") for line in told.splitlines() if line.count(",") == 1)
    mine = (used.strip() for pid, used in rows if pid.strip() == str(os.getpid()))
    return sum(int(used) << 20 for used in mine if used.isdigit())
