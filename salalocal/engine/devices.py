"""What a model can run on, and in which numbers. Knows no model."""

from __future__ import annotations

import torch

from salalocal import machine
from salalocal.errors import InvalidRequest

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def resolve_device(device: str) -> torch.device:
    """ "auto", "cpu" or "cuda" -> the device; raises InvalidRequest."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise InvalidRequest(f"device is {device!r}; known are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("device is 'cuda', but PyTorch finds no usable NVIDIA GPU; use 'cpu'")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" or a name -> the dtype; raises InvalidRequest."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" or cpu_multiplies_bfloat16() else torch.float32
    if dtype not in _DTYPES:
        raise InvalidRequest(f"dtype is {dtype!r}; known are auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 products; without them it is slower than float32."""
    # PyTorch keeps the question under a private name; a build without it is treated as a CPU without it.
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(has is not None and has())


def device_name(device: torch.device) -> str:
    """The card's or the processor's name, the latter with its cores."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return machine.processor_name()
