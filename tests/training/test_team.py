"""Two processes that train together have the same gradients and take the same decisions."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import torch

from salalocal.training.team import Team

WORK = textwrap.dedent(
    """
    import os, torch
    from salalocal.training.team import Team
    team = Team.join()
    weight = torch.zeros(3, requires_grad=True)
    idle = torch.zeros(2, requires_grad=True)
    (weight * (1.0 + team.rank)).sum().backward()
    team.average([weight, idle])
    assert weight.grad.tolist() == [1.5, 1.5, 1.5], weight.grad
    assert idle.grad.tolist() == [0.0, 0.0]
    assert team.agree(team.rank + 7.0, 1.0) == [7.0, 1.0]
    team.leave()
    print("agreed", team.rank, team.size)
    """
)


def test_two_processes_agree() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORK],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(said) == ["agreed 0 2", "agreed 1 2"]


def test_a_process_alone_is_a_team() -> None:
    team, weight = Team(), torch.ones(2, requires_grad=True)
    weight.sum().backward()
    team.average([weight])
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0]
    assert team.agree(3.0) == [3.0]
    team.leave()
