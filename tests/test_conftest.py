"""The safety net under the tests holds: fresh memory is poisoned, the network is refused, the home is ours."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_fresh_float_memory_is_nan(dtype: torch.dtype) -> None:
    sample = torch.zeros(3, 5, dtype=dtype)
    for fresh in (
        torch.empty(3, 5, dtype=dtype),
        torch.empty_like(sample),
        torch.empty_strided((3, 5), (5, 1), dtype=dtype),
        sample.new_empty(3, 5),
    ):
        assert fresh.dtype == dtype
        assert fresh.float().isnan().all()


def test_fresh_integer_memory_is_left_alone() -> None:
    assert torch.empty(4, dtype=torch.int64).shape == (4,)


def test_other_machines_are_refused_and_this_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    with pytest.raises(BaseException, match="sends nothing anywhere"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(BaseException, match="sends nothing anywhere"):
        socket.getaddrinfo("example.org", 443)


def test_home_belongs_to_the_test_run(salalocal_home: Path) -> None:
    assert os.environ["SALALOCAL_HOME"] == str(salalocal_home)
    assert not salalocal_home.is_relative_to(Path.home() / ".local")
