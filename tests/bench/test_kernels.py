"""The table of kernels: shares of the ceiling, selections as they are described, the picture, and no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from salalocal.bench import kernels
from salalocal.bench.clock import Ceilings, milliseconds
from salalocal.bench.kernels import Row, measured
from salalocal.bench.picture import draw_picture, write_picture
from salalocal.cli.app import app
from salalocal.cli.bench import _line
from salalocal.errors import InvalidRequest
from salalocal_kernels.gpu import bench
from salalocal_kernels.gpu.bench import peers
from salalocal_kernels.gpu.bench.cases import Case, Peer
from salalocal_kernels.gpu.bench.selections import BLOCK, LOCAL, PICKS, selection

CEILINGS = Ceilings("a card", 2e12, 5e10, {"bf16": 1e14})


def timed(monkeypatch: pytest.MonkeyPatch, case: Case, taken: float, peer: float = 1.0) -> Row:
    monkeypatch.setattr(kernels, "milliseconds", lambda call, _turns: taken if call is case.call else peer)
    return measured(case, CEILINGS)


def test_what_takes_longer_is_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 ms of bytes, 2 ms of operations.
    row = timed(monkeypatch, Case("k", "s", lambda: None, 2 * 10**9, 2 * 10**11), 4.0)
    assert (row.bound, row.floor_ms, row.of_ceiling) == ("bf16", pytest.approx(2.0), pytest.approx(0.5))
    assert row.flop_per_second == pytest.approx(5e13)
    assert row.peer_ms is None
    row = timed(monkeypatch, Case("k", "s", lambda: None, 2 * 10**9, 10**10), 1.25)
    assert (row.bound, row.of_ceiling) == ("bytes", pytest.approx(0.8))


def test_rows_from_host_memory_are_held_to_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    row = timed(monkeypatch, Case("gather_rows", "s", lambda: None, 5 * 10**7), 2.0)
    assert (row.bound, row.floor_ms) == ("bus", pytest.approx(1.0))


def test_a_peer_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    row = timed(monkeypatch, Case("k", "s", lambda: None, 1, peer=Peer("other", lambda: lambda: 1)), 2.0, peer=6.0)
    assert (row.peer, row.peer_ms, row.peer_error) == ("other", 6.0, None)


def test_a_peer_that_fails_is_said_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> Callable[[], object]:
        raise ImportError("built for another card\nat length")

    row = timed(monkeypatch, Case("k", "s", lambda: None, 1, peer=Peer("other", prepare)), 2.0)
    assert (row.milliseconds, row.peer_ms, row.peer_error) == (2.0, None, "ImportError: built for another card")
    assert _line(row).endswith("other: ImportError: built for another card")


class Module:
    """Stands in for a module of cases."""

    def __init__(self, *names: str) -> None:
        self.cases = lambda: [Case(name, "s", lambda: None, 1) for name in names]


@pytest.fixture
def _two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(kernels, "measure_ceilings", lambda: CEILINGS)
    monkeypatch.setattr(kernels, "milliseconds", lambda _call, _turns: 1.0)
    for name, module in (("lightning", Module("one", "two")), ("sparse", Module()), ("packed", Module("one"))):
        monkeypatch.setattr(bench, name, module, raising=False)
        monkeypatch.setitem(sys.modules, f"{bench.__name__}.{name}", module)


@pytest.mark.usefixtures("_two_kernels")
def test_missing_peers_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_is_there", lambda module: module == "fla")
    result = CliRunner().invoke(app, ["bench", "kernels"])
    assert result.exit_code == 0
    assert result.output.count("bitsandbytes") == 1
    assert "fla-core" not in result.output
    assert [line.split()[0] for line in result.output.splitlines()[-3:]] == ["one", "two", "one"]


@pytest.mark.usefixtures("_two_kernels")
@pytest.mark.parametrize("only", ["two", "two s"])
def test_one_kernel_alone(only: str) -> None:
    result = CliRunner().invoke(app, ["bench", "kernels", "--only", only])
    assert [line.split()[0] for line in result.output.splitlines()[-2:]] == ["kernel", "two"]
    result = CliRunner().invoke(app, ["bench", "kernels", "--only", "three"])
    assert str(result.exception) == "no row begins with 'three'; there are one, two"


@pytest.mark.parametrize(("shared", "kept"), [(0.64, 0.64), (0.0, 0.0)])
def test_neighbours_share_what_is_said(shared: float, kept: float) -> None:
    first, tokens = 1 << 17, 300
    picked = selection(first, tokens, shared).numpy()
    assert picked.shape == (2, tokens, PICKS)
    assert (np.diff(picked, axis=-1) > 0).all()
    own = (first + np.arange(tokens)) // BLOCK
    assert (picked[..., 0] == 0).all()
    assert (picked[..., -LOCAL - 1 :] == (own[:, None] - LOCAL + np.arange(LOCAL + 1))).all()
    free = [[set(row[1 : -LOCAL - 1]) for row in head] for head in picked]
    shares = [len(a & b) / len(a) for head in free for a, b in pairwise(head)]
    # The window moves on at times, over picks that lie in its way.
    assert np.mean(shares) == pytest.approx(kept, abs=0.02)


def test_the_picture_has_a_bar_for_every_row(tmp_path: Path) -> None:
    rows = [Row("k", "s", "replayed", 1.0, 1e12, 1e13, share, "bytes", None, None) for share in (0.25, 1.0)]
    picture = np.asarray(draw_picture("a card", rows))
    blue = (picture == (40, 110, 180)).all(-1).sum(1)
    assert sorted(set(blue.tolist()) - {0}) == [131, 521]
    write_picture(tmp_path / "k.png", "a card", rows)
    with Image.open(tmp_path / "k.png") as image:
        assert image.format == "PNG"
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_picture(tmp_path / "none" / "k.png", "a card", rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    result = CliRunner().invoke(app, ["bench", "kernels"])
    assert isinstance(result.exception, InvalidRequest)
    assert "NVIDIA GPU" in str(result.exception)


@pytest.mark.gpu
def test_the_host_is_not_timed_on_a_gpu() -> None:
    x = torch.zeros(16, device="cuda")

    def launched_slowly() -> None:
        begun = perf_counter()
        while perf_counter() < begun + 60e-6:
            pass
        x.add_(1)

    assert milliseconds(launched_slowly) < 0.03
