"""What launchers know of the chip they launch on. Asks the driver once per device and never waits for the GPU."""

from __future__ import annotations

import functools

import torch
import triton

# Triton's interpreter runs a kernel as Python, where a loop cannot run to a number read from memory; launchers then
# pass the largest number of steps instead.
INTERPRETED: bool = triton.knobs.runtime.interpret


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability as one number, 90 for an H100; 80 where there is no GPU (the interpreter)."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least; 1 where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
