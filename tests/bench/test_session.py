"""The timing of saved sessions runs and reads what it says."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from salalocal.bench.session import time_session
from salalocal.cache.manifest import read_manifest
from salalocal.cli.app import app


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


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "session", "--tokens", "100", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "100 tokens" in result.stdout
    assert "from memory" in result.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    result = CliRunner().invoke(app, ["bench", "session", "--tokens", "64", "--json"])
    assert json.loads(result.stdout)[0]["tokens"] == 64
