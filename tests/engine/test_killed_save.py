"""A process that reads and saves is killed again and again; what is on the disk is always a whole session."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from naive_sala import tiny_config, write_model
from replay import assert_same
from saving_forever import CHUNK, FINAL_LENGTH, IDS, load

from salalocal.cache.manifest import MANIFEST_NAME
from salalocal.engine.session import Session

_LOG = logging.getLogger(__name__)

HERE = Path(__file__).parent
# What a child was doing when it was killed, as the server tells.
MOMENTS = {"10": "reading", "11": "reading, a thread writing", "01": "saving", "00": "in between"}


@pytest.mark.parametrize("kept", ["device", "tiered"])
@pytest.mark.parametrize("kills", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that each need not import torch")
def test_every_kill_leaves_a_checkpoint(tmp_path: Path, kills: int, kept: str, pytestconfig: pytest.Config) -> None:
    kills = pytestconfig.getoption("--kills") or kills
    model, folder = write_model(tmp_path / "model", tiny_config()), tmp_path / "saved"
    engine = load(model, is_tiered=kept == "tiered")
    whole = engine.new_session()
    whole.prefill(IDS, chunk_size=CHUNK, final_length=FINAL_LENGTH, checkpoints_at=range(0, len(IDS) + 1, CHUNK))
    at = {known.position: known for known in whole.checkpoints}
    expected = whole.fork()
    lengths: set[int] = set()
    moments: Counter[str] = Counter()
    server = subprocess.Popen(
        [sys.executable, HERE / "saving_forever.py", model, kept],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        for _ in range(kills):
            server.stdin.write(f"{folder}\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            while not (folder / MANIFEST_NAME).exists():
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            moments[MOMENTS[server.stdout.readline().rstrip("\n")]] += 1
            restored = engine.restore(folder)
            expected = whole.fork()
            expected.rewind(at[restored.length])
            assert_same(restored, expected)
            assert_checkpoints(restored, expected)
            lengths.add(restored.length)
        server.stdin.close()
    assert server.returncode == 0
    assert len(lengths) > 3, "they were killed in different places"
    assert kills < 300 or len(moments) == len(MOMENTS), "they were killed while doing different things"
    _LOG.info("%s kills, K and V %s, at %s lengths: %s", kills, kept, len(lengths), dict(moments))


def assert_checkpoints(restored: Session, expected: Session) -> None:
    """All kept checkpoints are those of the reading that was never killed."""
    known = {checkpoint.position: checkpoint for checkpoint in expected.checkpoints}
    for checkpoint in restored.checkpoints:
        one, other = restored.fork(), expected.fork()
        one.rewind(checkpoint)
        other.rewind(known[checkpoint.position])
        assert_same(one, other)
    rest = IDS[expected.length :][:CHUNK]
    if rest:
        one = restored.fork()
        one.prefill(rest, final_length=FINAL_LENGTH)
        expected.prefill(rest, final_length=FINAL_LENGTH)
        assert_same(one, expected)
