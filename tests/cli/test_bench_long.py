"""`salalocal bench long`: what is asked of the measurement, what is said of its rows, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted import Run

from salalocal.bench import long_run
from salalocal.bench.clock import Ceilings
from salalocal.bench.long import Plan
from salalocal.bench.long_rows import LongRow, LongTable, Traffic

A, B = 36e-6, 2e-11
CEILINGS = Ceilings("a card", 2e12, 5e10, {"bf16": 7e14})
OURS = LongRow(
    "salalocal", 1 << 18, "replayed", "full", 8 << 30, 8192, False, "a card", "a run",
    A * 2**18 + B * 2**36, 3.25, 64, 7 << 30, "process", 9 << 30, 5 << 30, 1.5,
    Traffic(0, 9, 2 * 10**9), Traffic(87, 13, 5),
)  # fmt: skip
ROWS = [
    replace(OURS, tokens=1 << 16, staged=True, ttft_seconds=A * 2**16 + B * 2**32, peak_device_bytes=None),
    OURS,
    replace(OURS, tokens=1 << 20, ttft_seconds=None, decode_ms=None, note="out of memory"),
    LongRow("dense peer", 1 << 18, "everything", "cudnn", None, 0, False, "a card", "a run", 4 * OURS.ttft_seconds),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, tuple[int, ...]]]:
    """What was asked of a measurement that gives ROWS."""
    calls: list[tuple[Plan, tuple[int, ...]]] = []

    def time_long(
        plan: Plan,
        peers: tuple[int, ...],
        table: LongTable,
        on_ceilings: Callable[[Ceilings], None],
        on_row: Callable[[LongRow], None],
    ) -> dict[str, str]:
        calls.append((plan, peers))
        on_ceilings(CEILINGS)
        table.runs["a run"] = {"scoring_seconds_per_square": 1.5e-11}
        for row in ROWS:
            table.add(row)
            on_row(row)
        return {"op": "why"}

    monkeypatch.setattr(long_run, "time_long", time_long)
    monkeypatch.setattr(long_run, "check_card", lambda _: None)
    return calls


def test_a_table_for_people(run: Run, asked: list[tuple[Plan, tuple[int, ...]]], tmp_path: Path) -> None:
    outcome = run("bench", "long", "--gpu-memory", "8GiB", "--peer", "64K,256K", "--plot", tmp_path / "long.png")
    assert outcome.code == 0
    lengths = tuple(1 << power for power in range(16, 21))
    assert asked == [(Plan(lengths, ("replayed",), "full", 8192, 8 << 30), (1 << 16, 1 << 18))]
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "a card: copy 2.00 TB/s, from host 50.0 GB/s, bf16 700 TFLOP/s" in lines
    assert "ours 64K replayed full 8.00GiB 2.45* 308 9.00 1.5 87% 2.0" in lines
    assert "ours 256K replayed full 8.00GiB 10.81 308 7.00 9.00 1.5 87% 2.0" in lines
    assert any(line.startswith("ours 1M replayed full") and line.endswith("out of memory") for line in lines)
    assert "dense peer 256K everything cudnn 43.25" in lines
    (fitted,) = [line for line in lines if line.startswith("replayed, full: ")]
    assert fitted.startswith("replayed, full: 36.00 us x N + 21.99 s x (N / 1M)^2; model less measured: 64K ")
    assert fitted.replace("-0.0", "+0.0").endswith("64K +0.0 %, 256K +0.0 %")
    assert (
        "scores are 2,560 x N FLOP per token: all of b at 128 TFLOP/s; scores and selection timed by themselves make "
        "75 % of it"
    ) in lines
    assert "256K, replayed: the dense peer took 4.00 times as long" in outcome.err
    assert "op ran as plain PyTorch: why" in outcome.err
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")


def test_the_plan_beside_a_row(
    run: Run, asked: list[tuple[Plan, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del asked
    row = replace(OURS, ttft_seconds=10.0, planned_seconds=9.5, decode_ms=3.0, planned_tokens_per_second=340.0)
    monkeypatch.setitem(globals(), "ROWS", [row])
    assert "9.50 -5% 340 +2%" in " ".join(run("bench", "long").out.split())
    (data,) = run("bench", "long", "--json").data["rows"]
    assert (data["plan_ratio"], data["plan_decode_ratio"]) == (pytest.approx(0.95), pytest.approx(1.02))


def test_everything_that_can_be_asked(run: Run, asked: list[tuple[Plan, tuple[int, ...]]], tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    words = ("--length", "1M,2M", "--selection", "own, all-new", "--prefill", "fp8", "--chunk", "16K", "--staged")
    found = run("bench", "long", *words, "--out", path, "--json").data
    assert asked == [(Plan((1 << 20, 1 << 21), ("own", "all-new"), "fp8", 1 << 14, None, True), ())]
    assert [row["tokens"] for row in found["rows"]] == [row.tokens for row in ROWS]
    assert found["rows"][1]["peer_ratio"] == pytest.approx(4)
    assert found["rows"][1]["decode_traffic"] == {"hits": 87, "misses": 13, "nbytes": 5}
    assert found["models"][0]["b"] == pytest.approx(B)
    assert found["runs"] == {"a run": {"scoring_seconds_per_square": 1.5e-11}}
    assert len(json.loads(path.read_text())["rows"]) == 4
    # What was gathered before is shown again, with what is new.
    assert run("bench", "long", "--out", path).out.count("out of memory") == 2


def test_a_cap_that_was_not_kept_is_told(
    run: Run, asked: list[tuple[Plan, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    del asked
    monkeypatch.setitem(globals(), "ROWS", [replace(OURS, peak_device_bytes=9 << 30)])
    assert "256K, replayed: the process held more than its cap" in run("bench", "long").err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--selection", "mine"), "--selection: 'mine' is not known; known are own, replayed, all-new"),
        (("--length", "4K"), "the length 4K is outside 8K to 2M tokens"),
        (("--chunk", "8K,16K"), "--chunk is '8K,16K'; one length is read at a time"),
        (("--gpu-memory", "lots"), "--gpu-memory is 'lots'; give a size as in 8GiB or 24GB"),
        (("--out", __file__), "not a file of this version's 'salalocal bench long'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_refusals(run: Run, asked: list[tuple[Plan, tuple[int, ...]]], words: tuple[str, ...], message: str) -> None:
    outcome = run("bench", "long", *words)
    assert (outcome.code, asked) == (2, [])
    assert message in outcome.error_lines[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(run: Run) -> None:
    outcome = run("bench", "long")
    assert outcome.code == 2
    assert "times texts on an NVIDIA GPU" in outcome.err
