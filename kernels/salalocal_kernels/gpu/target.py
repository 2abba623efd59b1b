"""What the launchers need to know of the device they launch on. Reads no tensor, so it never waits for the GPU."""

from __future__ import annotations

import functools

import torch

# For a tensor that is on no GPU: Triton's interpreter runs kernels on the processor, and one tile size is as good as
# another there.
_ELSEWHERE = ((8, 6), 1)


@functools.lru_cache
def _cuda(index: int) -> tuple[tuple[int, int], int]:
    properties = torch.cuda.get_device_properties(index)
    return (properties.major, properties.minor), properties.multi_processor_count


def describe(device: torch.device) -> tuple[tuple[int, int], int]:
    """Compute capability and number of multiprocessors of a device."""
    if device.type != "cuda":
        return _ELSEWHERE
    return _cuda(torch.cuda.current_device() if device.index is None else device.index)
