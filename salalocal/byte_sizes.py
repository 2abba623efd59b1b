"""Sizes of memory as people write them: "8GiB", "24 GB". Knows no memory."""

from __future__ import annotations

import re

from salalocal.errors import InvalidRequest

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)", re.IGNORECASE)
_UNITS = {"gib": 1 << 30, "gb": 10**9, "mib": 1 << 20, "mb": 10**6}
_GPU_BYTES = (1 << 30, 1 << 42)


def parse_gpu_memory(text: str | None) -> int | None:
    """ "7.25GiB" -> bytes of a GPU's memory; None, where none is named, stays None.

    Raises:
        InvalidRequest: not a size with its unit, or outside 1 GiB to 4 TiB.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"--gpu-memory is {text[:40]!r}; give a size as in 8GiB or 24GB")
    count = int(float(match[1]) * _UNITS[match[2].lower()])
    least, most = _GPU_BYTES
    if not least <= count <= most:
        raise InvalidRequest(
            f"--gpu-memory is {text[:40].strip()}; from {human_size(least)} to {human_size(most)} can be given"
        )
    return count


def human_size(count: int) -> str:
    """Bytes in the units that memory is sold in: '812.0 MiB', '7.1 GiB'."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"
