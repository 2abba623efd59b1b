"""What every test can rely on: its own data folder, no network, few threads, and no luck with fresh memory.

Knows nothing of the product beyond the name of its one environment variable. Imports no torch itself, so
that tests of the pieces that decide without computing start in milliseconds.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch, numpy or tokenizers read them; subprocesses of tests inherit them.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How often test_killed_save kills, where somebody wants to know more surely."""
    parser.addoption("--kills", type=int, help="of a reading and saving process, in tests/engine/test_killed_save.py")


class NetworkUsed(BaseException):
    """A test reached for another machine. Not an `Exception`, so that no code under test can swallow it."""


def _is_this_machine(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else ""  # a string is a path: a local socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0] or ""
        host = host.decode() if isinstance(host, bytes) else host
    else:
        return
    if not _is_this_machine(host):
        raise NetworkUsed(f"{event} {host!r}: salalocal sends nothing anywhere")


# An audit hook sees every socket of this process, whichever library opens it, and cannot be taken off again.
sys.addaudithook(_refuse_other_machines)


@pytest.fixture(scope="session", autouse=True)
def salalocal_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder of this test run's own: no test sees or changes what the developer has installed."""
    home = tmp_path_factory.mktemp("salalocal_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SALALOCAL_HOME", str(home))
        yield home


def _poisoned(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def make_and_fill(*args: Any, **kwargs: Any) -> Any:
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            import torch

            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    make_and_fill.is_poisoned = True  # type: ignore[attr-defined]
    return make_and_fill


@pytest.fixture(autouse=True)
def _poison_fresh_memory() -> None:
    """Fills what torch hands out uninitialised with NaN, so that a kernel that leaves a hole is found out.

    Done once, in the first test after torch was imported. torch has a switch for this
    (`fill_uninitialized_memory`), but it works only together with deterministic algorithms, and then the
    tests would run other kernels than the users do.
    """
    torch = sys.modules.get("torch")
    if torch is None or hasattr(torch.empty, "is_poisoned"):
        return
    for owner, names in ((torch, ("empty", "empty_like", "empty_strided")), (torch.Tensor, ("new_empty",))):
        for name in names:
            setattr(owner, name, _poisoned(getattr(owner, name)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors of tests this small gain nothing from a second thread, and lose tenfold where other processes want its
    core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
