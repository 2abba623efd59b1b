"""Memory grows with tokens, not with queries x keys: a 32K-token prompt in one shot stays under 2 GiB."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parent.parent / "golden" / "models" / "m4"
LIMIT_BYTES = 2 << 30
# Peak resident memory of the process, torch itself included; ru_maxrss is in KiB on Linux and bytes on macOS.
SCRIPT = """
import resource, sys
import salalocal
session = salalocal.load(sys.argv[1], device="cpu", dtype="float32").new_session()
tokens = int(sys.argv[2])
session.prefill([token * 7 % 256 for token in range(tokens)], chunk_size=tokens)
assert session.length == tokens and bool(session.logits.isfinite().all())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def peak_bytes(tokens: int) -> int:
    command = [sys.executable, "-c", SCRIPT, str(MODEL), str(tokens)]
    # One thread: threads would have to share a core with the rest of the suite, and wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is not there")
def test_a_32k_prompt_in_one_shot() -> None:
    peak = peak_bytes(32768)
    assert peak < LIMIT_BYTES, f"peak of {peak / 2**20:,.0f} MiB"
