"""`salalocal verify`: the table, the JSON object and the exit code, over scripted results and one real case."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted import Run

from salalocal.evaluate import golden

PASSED = golden.CaseResult(
    case="p1_dense",
    chunk_size=None,
    prefill_error=3.1e-6,
    decode_error=4.2e-6,
    state_error=5.3e-7,
    prefill_rms=1.0e-6,
    changed_sets=2,
    changed_sets_within_margin=0,
    compared_sets=410,
    argmax_mismatches=0,
    seconds=1.25,
    implementations={"rms_norm": "kernels.ref.rms_norm", "rope": "kernels.ref.rope"},
    passed=True,
    reason="",
)
FAILED = dataclasses.replace(
    PASSED, case="p2_sparse", chunk_size=64, prefill_error=float("nan"), passed=False, reason="logits are not finite"
)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, object]]:
    """Makes `verify_cases` give these results; returns what it was asked."""

    def script(*results: golden.CaseResult) -> dict[str, object]:
        asked: dict[str, object] = {}

        def verify_cases(folder, *, on_case, **options):
            asked.update(options, folder=folder)
            for result in results:
                on_case(result)
            return list(results)

        monkeypatch.setattr(golden, "verify_cases", verify_cases)
        return asked

    return script


def test_table(run: Run, scripted, tmp_path: Path) -> None:
    scripted(PASSED)
    outcome = run("verify", tmp_path)
    assert outcome.code == 0
    allowed, header, row, ops, last = outcome.out.splitlines()
    assert allowed == (
        "allowed in float32: logits below 1e-03, states below 1e-03, sets equal where their margin exceeds 1e-05, "
        "no other likeliest token; see docs/correctness.md"
    )
    assert "beyond margin" in header
    assert header.split()[:4] == ["case", "chunk", "prefill", "decode"]
    assert row.split() == (
        ["p1_dense", "one", "shot", "3.1e-06", "4.2e-06", "5.3e-07", "1.0e-06", "2/410", "0", "0", "1.2", "s", "ok"]
    )
    assert ops == "kernels.ref: rms_norm, rope"
    assert last == "1 of 1 passed"


def test_bfloat16_is_called_what_was_judged(run: Run, scripted, tmp_path: Path) -> None:
    scripted(PASSED)
    on_cpu = run("verify", "--dtype", "bfloat16", tmp_path).out.splitlines()
    assert "at most 2 times the errors of plain PyTorch" in on_cpu[0]
    assert "only that all are finite is judged" in on_cpu[0]
    assert on_cpu[2].endswith("finite")
    assert on_cpu[-1] == "1 of 1 finite"
    on_gpu = run("verify", "--dtype", "bfloat16", "--device", "cuda", tmp_path).out.splitlines()
    assert "finite" not in on_gpu[0]
    assert on_gpu[2].endswith("ok")


def test_a_failed_case_says_why_and_exits_with_1(run: Run, scripted, tmp_path: Path) -> None:
    scripted(PASSED, FAILED)
    outcome = run("verify", tmp_path)
    assert outcome.code == 1
    assert "FAILED: logits are not finite" in outcome.out
    assert outcome.out.splitlines()[-1] == "1 of 2 passed"


def test_json_keeps_stdout_for_itself(run: Run, scripted, tmp_path: Path) -> None:
    scripted(PASSED, FAILED)
    outcome = run("verify", "--json", tmp_path)
    assert outcome.code == 1
    assert outcome.data["passed"] is False
    assert [case["case"] for case in outcome.data["cases"]] == ["p1_dense", "p2_sparse"]
    assert outcome.data["cases"][1]["prefill_error"] is None
    assert outcome.data["cases"][0]["implementations"] == dict(PASSED.implementations)
    assert "p1_dense" in outcome.err, "progress belongs on stderr"


def test_options_reach_the_evaluation(run: Run, scripted, tmp_path: Path) -> None:
    asked = scripted(PASSED)
    options = ["--dtype", "float64", "--device", "cuda", "--chunk-size", "0", "--chunk-size", "7", "--case", "p2"]
    run("verify", tmp_path, *options)
    assert asked == {
        "folder": tmp_path,
        "dtype": "float64",
        "device": "cuda",
        "chunk_sizes": [None, 7],
        "names": ["p2"],
    }


def test_a_folder_without_cases_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run("verify", tmp_path)
    assert outcome.code == 2
    assert str(tmp_path) in outcome.error_lines[0]


def test_the_cases_of_the_repository(run: Run) -> None:
    folder = Path(__file__).resolve().parents[1] / "golden"
    cases = sorted(path.parent.name for path in folder.glob("*/case.json"))
    if not cases:
        pytest.skip("no cases in tests/golden")
    outcome = run("verify", folder, "--case", cases[0], "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.data["cases"][0]["prefill_error"] < 1e-3
