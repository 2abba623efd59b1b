"""Pages on their way between host and device, beside the computing: a lane of copies, two buffers each way.

Knows no sessions and no attention.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from salalocal.cache.page_table import page_runs
from salalocal_kernels import HostPages, strip_bytes, unpack_pages

# A copy takes some microseconds to ask for, in which so many more pages of 64 KiB come over the bus.
_GAP_PAGES = 4
# Before a chunk's own pages, of a block that it goes on with and of windows that reach back over its edge.
_EARLIER_PAGES = 4


class Lane:
    """A stream of its own for copies; on a processor they are done when they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._is_ahead = False

    def follow(self) -> None:
        """Copies from here on wait for all computing so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def lead(self) -> None:
        """Computing from here on waits for all copies so far."""
        if self._stream is not None and self._is_ahead:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._is_ahead = False

    @contextmanager
    def copying(self) -> Iterator[None]:
        """What is asked for in the block goes this lane."""
        self._is_ahead = True
        with torch.cuda.stream(self._stream):
            yield

    def uses(self, tensor: Tensor) -> None:
        """`tensor` may be dropped before the lane's copies of it are done."""
        if self._stream is not None:
            tensor.record_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """All copies so far, for `after`."""
        return None if self._stream is None else self._stream.record_event()

    def after(self, mark: torch.cuda.Event | None) -> None:
        """Computing from here on waits for the copies before `mark`."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)


class Outbox:
    """Two rows of pages on the device that take turns: what one layer's chunk wrote goes to the host from one, beside
    the computing, while the next layer fills the other.

    They stay where they are: taken anew for every chunk, they would lie between tensors that go at its end.

    Args:
        lane: of the copies.
        page_shape: Hkv, 2, B and D.
        dtype, device: of the pages.
    """

    def __init__(self, lane: Lane, page_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._lane = lane
        self._pages = torch.empty(2, 0, *page_shape, dtype=dtype, device=device)
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self._pages.nbytes

    # What one session makes another may write to, also where nothing is inferred.
    @torch.inference_mode(False)
    def reserve(self, pages: int) -> None:
        """Room for a chunk that writes to so many pages, and for the earlier ones that it goes on with."""
        pages += _EARLIER_PAGES
        if pages > self._pages.shape[1]:
            self._lane.lead()
            shape, like = self._pages.shape, self._pages
            # Not both at once.
            self._pages = like.new_empty(0)
            self._pages = like.new_empty(2, pages, *shape[2:])

    def take(self, pages: int) -> Tensor:
        """[pages, Hkv, 2, B, D], which holds anything, and is good until it is taken again but one."""
        if pages > self._pages.shape[1]:
            self.reserve(pages)
        self._turn = 1 - self._turn
        self._lane.after(self._sent[self._turn])
        return self._pages[self._turn, :pages]

    def sent(self) -> None:
        """The copies of what was taken last have been asked for."""
        self._sent[self._turn] = self._lane.mark()


class Staging:
    """Two buffers of pages on the device through which a longer row of pages passes.

    While one is computed with, the other fills. What will be needed next can be asked for early.

    Args:
        buffers: [2, pages, Hkv, 2, B, D], finite, as what is not copied is multiplied by weights of 0.
        strip_pages: where the host keeps 8-bit codes, pages of them that are on the device at once before they are
            unpacked into a buffer; 0 where it keeps none.

    Attributes:
        pages: of one buffer.
    """

    def __init__(self, buffers: Tensor, strip_pages: int = 0) -> None:
        self._buffers = buffers
        _, self.pages, heads, _, block, dim = buffers.shape
        device = buffers.device
        self._strips = torch.zeros(strip_pages, heads, strip_bytes(block, dim), dtype=torch.uint8, device=device)
        self.strip_pages = strip_pages
        self._lane = Lane(device)
        self._held: list[tuple[Hashable, int] | None] = [None, None]
        # From the host, since the beginning.
        self.copied_bytes = 0
        self._ready: list[torch.cuda.Event | None] = [None, None]

    @property
    def nbytes(self) -> int:
        """Bytes that it has besides the buffers."""
        return self._strips.nbytes

    def drop(self) -> None:
        """Nothing is in the buffers, nor on its way there: computing from here on may write to them."""
        self._lane.lead()
        self._held = [None, None]

    def prefetch(self, key: Hashable, host: HostPages, numbers: np.ndarray) -> None:
        """Copies what comes first of a row that will soon be streamed under the same key, unless it is here.

        Args:
            key: of these pages as they are now.
            host: where they are.
            numbers: [n] int64, their numbers in order.
        """
        for index in range(2):
            start = index * self.pages
            if start < len(numbers) and self._held[index] != (key, start):
                self._fill(index, host, numbers, start, None)
                self._held[index] = (key, start)

    def stream(
        self, key: Hashable, host: HostPages, numbers: np.ndarray, wanted: np.ndarray | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Passes a row of pages piece by piece.

        Args:
            key, host, numbers: as for `prefetch`.
            wanted: [w] int64, the ascending places of the pages that are needed; None for all. Pieces without any are
                left out, and of other pages a piece may hold anything finite.

        Yields:
            first and last place (excluded) of a piece, and its pages [self.pages, Hkv, 2, B, D], behind which there may
            be room; good until the next piece is asked for.
        """
        starts = range(0, len(numbers), self.pages)
        todo = [start for start in starts if wanted is None or _count(wanted, start, start + self.pages)]
        placed = {
            held[1]: index
            for index, held in enumerate(self._held)
            if held is not None and held[0] == key and held[1] in todo
        }
        free = [index for index in range(2) if index not in placed.values()]
        for number, start in enumerate(todo):
            for following in todo[number:]:
                if free and following not in placed:
                    placed[following] = index = free.pop(0)
                    self._fill(index, host, numbers, following, wanted)
            index = placed.pop(start)
            self._held[index] = None
            self._lane.after(self._ready[index])
            yield start, min(start + self.pages, len(numbers)), self._buffers[index]
            free.append(index)

    def _fill(self, index: int, host: HostPages, numbers: np.ndarray, start: int, wanted: np.ndarray | None) -> None:
        self._held[index] = None
        self._lane.follow()
        stop = min(start + self.pages, len(numbers))
        places = (
            np.arange(stop - start)
            if wanted is None
            else wanted[slice(*np.searchsorted(wanted, (start, stop)))] - start
        )
        with self._lane.copying():
            self.copied_bytes += read_pages(host, numbers[start:stop], places, self._buffers[index], self._strips)
        self._ready[index] = self._lane.mark()


def read_pages(host: HostPages, numbers: np.ndarray, wanted: np.ndarray, target: Tensor, strips: Tensor) -> int:
    """Copies pages from the host, those of `wanted` places at least; returns how many bytes came over.

    Args:
        host: where they are.
        numbers: [n] int64, the page of each place.
        wanted: ascending places.
        target: [n or more, Hkv, 2, B, D].
        strips: uint8 [m, Hkv, 2 B (D + 2)] where target is, for m pages of codes at a time; finite, whatever they hold.
            Not looked at where the host keeps none.
    """
    if host.codes is None:
        return _copy_pages(host, numbers, wanted, target)
    copied = 0
    for start in range(0, len(numbers), max(1, len(strips))):
        stop = start + len(strips)
        here = wanted[slice(*np.searchsorted(wanted, (start, stop)))] - start
        if len(here):
            copied += _copy_pages(host, numbers[start:stop], here, strips)
            first, last = int(here[0]), int(here[-1]) + 1
            unpack_pages(strips[first:last], host.codes, target[start + first : start + last])
    return copied


def _copy_pages(host: HostPages, numbers: np.ndarray, wanted: np.ndarray, target: Tensor) -> int:
    """The same for what the host holds, pages or strips."""
    copied = 0
    for start, stop in page_runs(numbers, wanted, host.per_segment, _GAP_PAGES):
        segment, at = divmod(int(numbers[start]), host.per_segment)
        target[start:stop].copy_(host.segments[segment][at : at + stop - start], non_blocking=True)
        copied += target[start:stop].nbytes
    return copied


def write_pages(host: HostPages, numbers: np.ndarray, source: Tensor) -> None:
    """Copies source [n, Hkv, 2, B, D], or strips [n, Hkv, 2 B (D + 2)], to the pages `numbers` [n] of the host."""
    for start, stop in page_runs(numbers, np.arange(len(numbers)), host.per_segment, 0):
        segment, at = divmod(int(numbers[start]), host.per_segment)
        host.segments[segment][at : at + stop - start].copy_(source[start:stop], non_blocking=True)


def _count(wanted: np.ndarray, start: int, stop: int) -> int:
    first, last = np.searchsorted(wanted, (start, stop))
    return int(last - first)
