"""The most of main memory that this process had resident. Knows no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_FORGET_PEAK = "5"


def reset_peak() -> bool:
    """Begins anew; False where the system keeps the peak of the whole process only."""
    try:
        _RESET.write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """The peak since `reset_peak`; where the system tells none, what is resident now."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    memory = psutil.Process().memory_info()
    # Windows tells the peak of the whole process.
    return int(found[1]) << 10 if found else int(getattr(memory, "peak_wset", memory.rss))
