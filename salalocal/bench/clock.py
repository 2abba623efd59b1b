"""How long a call takes, and what the GPU can do at most. Knows no kernels.

Times are medians, of device events on a GPU, which is kept busy until a short call's launches are there: otherwise it
would wait for them between the events. A call too short for events is timed in a CUDA graph of a whole round of calls.
What is not about a GPU alone names its device; on a processor everything is timed by the wall clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

_WARM_UP_CALLS = 3
_REPEATS = (5, 200)
_ENOUGH_MS = 150.0
# Calls below this are led up to with so many cycles: 0.2 ms at 2 GHz, where a launch takes the host 0.02 to 0.05 ms.
_SHORT_MS = 1.0
_LEAD_CYCLES = 400_000


@dataclass(frozen=True)
class Ceilings:
    """Measured on the card in the same run.

    Attributes:
        device: the card's name.
        copy_bytes_per_second: device to device, bytes read plus bytes written.
        host_bytes_per_second: pinned host memory to device.
        flop_per_second: of a product of 8,192 x 8,192 x 8,192 by unit ("bf16", "fp8", "int8"); a unit the card lacks
            is not there.
    """

    device: str
    copy_bytes_per_second: float
    host_bytes_per_second: float
    flop_per_second: dict[str, float]

    @property
    def line(self) -> str:
        """All of it, for people."""
        rates = ", ".join(f"{unit} {rate / 1e12:,.0f} TFLOP/s" for unit, rate in self.flop_per_second.items())
        copy, bus = self.copy_bytes_per_second / 1e12, self.host_bytes_per_second / 1e9
        return f"{self.device}: copy {copy:.2f} TB/s, from host {bus:.1f} GB/s, {rates}"


def milliseconds(call: Callable[[], object], turns: int = 1) -> float:
    """The median time of one call; with `turns` > 1 of a CUDA graph of so many, divided by them."""
    for _ in range(max(_WARM_UP_CALLS, turns)):
        call()
    torch.cuda.synchronize()
    if turns == 1:
        return _median(call)
    return _median(_recorded(call, turns).replay) / turns


def recorded_milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The median time of a CUDA graph of one call; on a processor of the call."""
    for _ in range(_WARM_UP_CALLS):
        call()
    settle(device)
    if device.type == "cuda":
        return _median(_recorded(call, 1).replay)
    return median(wall_milliseconds(call, device) for _ in range(_REPEATS[0]))


def wall_milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The time of one call, from a device at rest until it rests again."""
    settle(device)
    begun = perf_counter()
    call()
    settle(device)
    return 1e3 * (perf_counter() - begun)


def settle(device: torch.device) -> None:
    """Waits for what was asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recorded(call: Callable[[], object], turns: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(turns):
            call()
    return graph


def _median(call: Callable[[], object]) -> float:
    times: list[float] = []
    fewest, most = _REPEATS
    while len(times) < fewest or (len(times) < most and sum(times) < _ENOUGH_MS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if not times or times[-1] < _SHORT_MS:
            torch.cuda._sleep(_LEAD_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return median(times)


def measure_ceilings() -> Ceilings:
    """A copy of 1 GiB, a copy of 256 MiB from pinned memory, and a square product in every unit of the card."""
    one, other = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(1 << 28, dtype=torch.uint8).pin_memory()
    copy = milliseconds(lambda: other.copy_(one))
    up = milliseconds(lambda: one[: host.numel()].copy_(host, non_blocking=True))
    rates = {unit: 2 * _SIDE**3 / milliseconds(call) * 1e3 for unit, call in _products().items()}
    name = torch.cuda.get_device_name()
    return Ceilings(name, 2 * one.numel() / copy * 1e3, host.numel() / up * 1e3, rates)


_SIDE = 8192


def _products() -> dict[str, Callable[[], object]]:
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    steps = torch.randint(-127, 128, (_SIDE, _SIDE), device="cuda", dtype=torch.int8)
    found: dict[str, Callable[[], object]] = {"bf16": lambda: a @ b, "int8": lambda: torch._int_mm(steps, steps.t())}
    if torch.cuda.get_device_capability() >= (8, 9):
        x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        rows, columns = torch.ones(_SIDE, 1, device="cuda"), torch.ones(1, _SIDE, device="cuda")
        found["fp8"] = lambda: torch._scaled_mm(
            x, y, scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return found
