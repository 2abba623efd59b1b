"""The timing of saved sessions runs and reads what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from made_sizes import small_config

from salalocal.bench import switching
from salalocal.bench.made_model import make_network
from salalocal.bench.session import time_session
from salalocal.bench.switching import time_pair
from salalocal.cache.manifest import read_manifest
from salalocal.cli.app import app
from salalocal.engine.decode_graph import DecodeGraph
from salalocal.engine.session import Session
from salalocal.errors import DoesNotFit


def test_a_small_session_is_timed(tmp_path: Path) -> None:
    rows = time_session(300, tmp_path / "s", repeats=1)
    assert [row.is_cold for row in rows] in ([False], [False, True])
    manifest, _ = read_manifest(tmp_path / "s")
    assert (manifest.length, rows[0].tokens) == (300, 300)
    # K and V, fine and coarse keys of 2 heads of 128 in 8 layers, ids, 24 states, logits; and headers.
    fine, coarse = (300 - 32) // 16 + 1, (300 - 128) // 64 + 1
    values = 300 * (8 * 2 * 2 * 128 * 2 + 4) + (fine + coarse) * 8 * 2 * 128 * 2 + 24 * 32 * 128 * 128 * 4 + 73448 * 4
    assert 0 < rows[0].nbytes - values < 16384
    assert all(row.ratio > 0 for row in rows)


@pytest.mark.parametrize("kept", ["device", "host"])
@pytest.mark.parametrize("is_graphed", [False, True])
def test_two_small_sessions_take_turns(monkeypatch: pytest.MonkeyPatch, kept: str, is_graphed: bool) -> None:
    network = make_network(small_config(), torch.float32, torch.device("cpu"))
    made: list[Session] = []
    begin = Session.__init__

    def seen(self: Session, *arguments: object, **named: object) -> None:
        begin(self, *arguments, **named)  # type: ignore[arg-type]
        made.append(self)
        if is_graphed:
            self._reader.decoder = DecodeGraph(network, self.max_tokens)

    monkeypatch.setattr(Session, "__init__", seen)
    row = time_pair(network, 400, None if kept == "device" else 1 << 20)
    assert (row.tokens, row.kept, row.device) == (400, kept, "processor")
    assert row.step_ms > 0
    assert row.fork_ms + row.step_ms > row.fork_call_ms > 0
    one, other, *forks = made
    assert len(forks) == 3
    assert [(fork.length - 6) % 16 for fork in forks] == [0] * 3, "windows of both levels were completed"
    assert other.length == 400 + 1 + 6 + 9
    assert one.length == forks[-1].length - 6


def test_two_sessions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "available_bytes", lambda _: 1 << 30)
    with pytest.raises(DoesNotFit, match=r"two sessions of 131,072 tokens need 2\.\d GiB of main memory and 1\.0 GiB"):
        switching.time_switching(1 << 17, torch.device("cpu"), print)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_switching_and_forking_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrow model, which launches as many kernels as the full-size one."""
    monkeypatch.setattr(switching, "released_config", switching.narrow_config)
    rows = switching.time_switching(1 << 16, torch.device("cuda"), print)
    assert [row.kept for row in rows] == ["device", "host"]
    for row in rows:
        assert max(row.switch_ms, row.first_ms, row.fork_ms, row.forked_ms) < 200, row


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "narrow_config", small_config)
    monkeypatch.setattr(switching, "KV_BUDGET_BYTES", 1 << 20)
    arguments = ["bench", "session", "--tokens", "100", "--folder", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "100 tokens" in result.stdout
    assert "from memory" in result.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    assert "K and V on the device (narrow model, processor): a step takes" in result.stdout
    assert "K and V in main memory" in result.stdout
    result = CliRunner().invoke(app, ["bench", "session", "--tokens", "64", "--device", "cpu", "--json"])
    told = json.loads(result.stdout)
    assert told["saved"][0]["tokens"] == 64
    assert [row["kept"] for row in told["switching"]] == ["device", "host"]
