"""Host memory that a GPU reads by itself: pages of all layers, in segments that never move. Knows no sessions.

A segment holds the same pages of every layer, those of one layer in a row: for each page and kv head K then V, or a
strip of 8-bit codes of both.
"""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import sys
import weakref
from time import perf_counter

import torch
from torch import Tensor

from salalocal_kernels import HostPages

_LOG = logging.getLogger(__name__)

SEGMENT_BYTES = 256 << 20
_MOST_SEGMENTS = 4096
# For every CUDA context, and mapped into its addresses.
_REGISTER_FLAGS = 3


class HostMemory:
    """Pages of several layers, zeros until they are written to.

    Segments are registered with CUDA, which makes them page-locked. Where that is refused, a warning says so once, and
    the device reads none of them by itself from then on.

    Args:
        layers: number of attention layers.
        page_shape: Hkv, 2, B and D; of strips Hkv and their bytes.
        dtype: of K and V; of strips uint8.
        device: that is to read them.
        segment_bytes: of one segment, at least one page of all layers.
        codes: what strips hold; None without them.

    Attributes:
        page_bytes: of one page in all layers.
        is_readable: the device reads this memory by itself.
        pin_seconds: spent so far on registering.
    """

    def __init__(
        self,
        layers: int,
        page_shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        segment_bytes: int = SEGMENT_BYTES,
        codes: torch.dtype | None = None,
    ) -> None:
        self.page_bytes = layers * math.prod(page_shape) * dtype.itemsize
        self.per_segment = max(1, segment_bytes // self.page_bytes)
        self._shape = (layers, self.per_segment, *page_shape)
        self._dtype = dtype
        self._codes = codes
        self._device = device
        self._segments: list[list[Tensor]] = [[] for _ in range(layers)]
        self.addresses = torch.zeros(layers, _MOST_SEGMENTS, dtype=torch.int64, device=device)
        self.is_readable = True
        self.pin_seconds = 0.0
        self._registered: list[int] = []
        # At the end of the process the driver does it.
        weakref.finalize(self, unregister, self._registered).atexit = False

    @property
    def capacity(self) -> int:
        """Pages there is memory for in every layer."""
        return len(self._segments[0]) * self.per_segment

    def reserve(self, pages: int) -> None:
        """Memory for at least `pages` pages; raises MemoryError where there is none, and keeps what there is."""
        while self.capacity < pages:
            self._grow()

    def layer(self, index: int) -> HostPages:
        """The pages of one layer; those to come too, as long as `is_readable` stays what it is."""
        return HostPages(self._segments[index], self.addresses[index], self.is_readable, self._codes)

    def _grow(self) -> None:
        number = len(self._segments[0])
        if number == _MOST_SEGMENTS:
            raise MemoryError(f"{self.capacity:,} pages are the most there can be")
        try:
            memory = _zeros(math.prod(self._shape) * self._dtype.itemsize)
        except OSError as error:
            raise MemoryError(f"{self.capacity:,} pages fit into this machine's memory") from error
        segment = torch.frombuffer(memory, dtype=self._dtype).view(self._shape)
        if self._device.type != "cpu" and self.is_readable:
            self._register(segment)
        first = torch.tensor([layer.data_ptr() for layer in segment], dtype=torch.int64)
        self.addresses[:, number].copy_(first)
        for pages, layer in zip(self._segments, segment, strict=True):
            pages.append(layer)

    def _register(self, segment: Tensor) -> None:
        begun = perf_counter()
        # All cores of the processor ask the system for these pages; registering would, on one.
        segment.zero_()
        error = register(segment.data_ptr(), segment.nbytes)
        self.pin_seconds += perf_counter() - begun
        if not error:
            self._registered.append(segment.data_ptr())
            return
        _LOG.warning(
            "K and V in host memory: CUDA does not register it (%s); reading goes through pageable memory, which is "
            "slower",
            error,
        )
        self.is_readable = False
        # Another object, so that whoever recorded the old one's addresses notices.
        self.addresses = self.addresses.clone()


def _zeros(nbytes: int) -> mmap.mmap:
    """Whole pages of the operating system, which take neither time nor memory until they are used."""
    if sys.platform != "linux":
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    # A child process would make copies of what the device is writing to.
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


def register(address: int, nbytes: int) -> str:
    """Page-locks memory and gives it to CUDA; "" or why that failed."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    code = runtime.cudaHostRegister(address, nbytes, _REGISTER_FLAGS)
    if not int(code):
        return ""
    # The runtime remembers a refusal until somebody asks for it, as the next launch does.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
    return str(runtime.cudaGetErrorString(code))


def unregister(addresses: list[int]) -> None:
    """Takes memory back from CUDA once nothing is under way."""
    if addresses:
        torch.cuda.synchronize()
    for address in addresses:
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
