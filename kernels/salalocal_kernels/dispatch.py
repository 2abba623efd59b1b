"""Which implementation of an op runs: its definition, one for processors, or a Triton kernel. Knows no op.

An op decides by the device of one of its tensors. A kernel is imported when it is first needed, so that Triton may be
missing where no GPU is used. Where a kernel does not take what it is given, the definition serves, a log message names
the op and the reason once, and whoever `watch`es is told. In float64 the definitions always serve.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")

_LOG = logging.getLogger("salalocal_kernels")
_GPU_PACKAGE = "salalocal_kernels.gpu"


@dataclass
class Served:
    """What ran while somebody watched.

    Attributes:
        modules: op -> the module that served it; of several the one that ran last.
        fallbacks: op -> why its definition served on a GPU though there is a kernel; float64 does not count.
    """

    modules: dict[str, str] = field(default_factory=dict)
    fallbacks: dict[str, str] = field(default_factory=dict)


_watchers: list[Served] = []


@contextmanager
def watch() -> Iterator[Served]:
    """What serves which op from here to the end of the block."""
    seen = Served()
    _watchers.append(seen)
    try:
        yield seen
    finally:
        # By identity: two watchers that have seen the same are equal.
        del _watchers[next(index for index, watcher in enumerate(_watchers) if watcher is seen)]


class Op(Generic[P, R]):
    """One name for all implementations of an op; called like its definition.

    Args:
        reference: the definition, which runs on any device.
        cpu: the same, made for processors.
        gpu: module under `gpu/` with a kernel's launcher of the same name; "" where there is none.
        lacks: given the op's arguments, why the kernel does not take them; "" where it does.
        decides: the number of the argument whose device decides; a tensor, or something else with a device.
    """

    def __init__(
        self,
        reference: Callable[P, R],
        *,
        cpu: Callable[P, R] | None = None,
        gpu: str = "",
        lacks: Callable[..., str] | None = None,
        decides: int = 0,
    ) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.cpu = cpu
        self._gpu_module = f"{_GPU_PACKAGE}.{gpu}" if gpu else ""
        self._lacks = lacks
        self._decides = decides
        self._told: set[str] = set()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the definition says."""
        run = self._choose(args, kwargs)
        for watcher in _watchers:
            watcher.modules[self.name] = run.__module__
        return run(*args, **kwargs)

    def module_on(self, device_type: str) -> str:
        """The module that serves on such a device, where its kernel takes the arguments."""
        if device_type == "cuda" and self._gpu_module and _has_triton():
            return self._gpu_module
        return (self.cpu if device_type == "cpu" and self.cpu else self.reference).__module__

    def _choose(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Callable[P, R]:
        device_type = _device_type(args[self._decides])
        if device_type == "cpu":
            return self.cpu or self.reference
        if device_type != "cuda" or not self._gpu_module or any(map(_is_float64, args)):
            return self.reference
        reason = self._reason(args, kwargs)
        if not reason:
            return self._kernel
        self._tell(reason)
        return self.reference

    def _reason(self, args: tuple[object, ...], kwargs: dict[str, object]) -> str:
        if not _has_triton():
            return "Triton is not installed"
        return self._lacks(*args, **kwargs) if self._lacks is not None else ""

    @functools.cached_property
    def _kernel(self) -> Callable[P, R]:
        return cast("Callable[P, R]", getattr(import_module(self._gpu_module), self.name))

    def _tell(self, reason: str) -> None:
        for watcher in _watchers:
            watcher.fallbacks[self.name] = reason
        if reason not in self._told:
            self._told.add(reason)
            _LOG.warning("%s runs as plain PyTorch on the GPU: %s", self.name, reason)


def _device_type(decider: object) -> str:
    return cast(torch.Tensor, decider).device.type


def _is_float64(argument: object) -> bool:
    return argument is torch.float64 or (isinstance(argument, torch.Tensor) and argument.dtype == torch.float64)


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
