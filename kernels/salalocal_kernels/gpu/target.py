"""What launchers know of the card they launch on. Asks the driver once per device and never waits for the GPU."""

from __future__ import annotations

import functools

import torch
import triton

# Triton's interpreter runs a kernel as Python, where a loop cannot run to a number read from memory; launchers then
# pass the largest number of steps instead.
INTERPRETED: bool = triton.knobs.runtime.interpret

# Capability and multiprocessors for a tensor that is on no GPU: in the interpreter one tile is as good as another.
_ELSEWHERE = (80, 1)


@functools.cache
def _cuda(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def capability(device: torch.device) -> int:
    """Compute capability as one number, 90 for an H100."""
    return _cuda(device)[0] if device.type == "cuda" else _ELSEWHERE[0]


def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least."""
    return _cuda(device)[1] if device.type == "cuda" else _ELSEWHERE[1]
