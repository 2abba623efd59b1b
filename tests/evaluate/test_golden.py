"""The golden cases pass at every chunk size, and anything off by more than the limits is found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import MakeCase, Tensors
from safetensors.torch import load_file, save_file

from salalocal.errors import BadCheckpoint, BadConfig, InvalidRequest
from salalocal.evaluate.golden import CaseResult, verify_cases
from salalocal_kernels import dispatch

GOLDEN = Path(__file__).parent.parent / "golden"


# ---- the cases of the project ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p3", "p4"])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000, None])
def test_small_cases_at_every_chunk_size(name: str, chunk_size: int | None) -> None:
    (result,) = verify_cases(GOLDEN, names=[name], chunk_sizes=[chunk_size])
    assert result.passed, result.reason
    assert result.prefill_error < 1e-3
    assert result.decode_error < 1e-3
    assert result.state_error < 1e-3
    assert result.changed_sets_within_margin == result.argmax_mismatches == 0
    assert result.compared_sets > 0


@pytest.mark.parametrize("chunk_size", [1000, None])
def test_the_released_sparse_sizes(chunk_size: int | None) -> None:
    (result,) = verify_cases(GOLDEN, names=["p6"], chunk_sizes=[chunk_size])
    assert result.passed, result.reason
    assert result.compared_sets == 2 * (9013 + 43)


@pytest.mark.parametrize("name", ["p3", "p4"])
def test_float64_tightens_the_agreement(name: str) -> None:
    (result,) = verify_cases(GOLDEN, names=[name], dtype="float64")
    assert result.passed, result.reason
    assert max(result.prefill_error, result.decode_error, result.state_error) < 1e-5
    assert result.changed_sets == 0


def test_bfloat16_runs() -> None:
    (result,) = verify_cases(GOLDEN, names=["p4"], dtype="bfloat16")
    assert result.passed, result.reason
    assert 1e-3 < result.prefill_rms < 1.0, "rounded to 8 bits, and still the same model"


# ---- tiny cases of every form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixers", ["sls", "ss", "ll"])
@pytest.mark.parametrize(("prompt", "decode"), [(40, 3), (10, 3), (22, 4), (40, 0), (10, 0)])
def test_tensors_that_do_not_apply_are_absent(make_case: MakeCase, mixers: str, prompt: int, decode: int) -> None:
    folder, _ = make_case(mixers, prompt, decode)
    (result,) = verify_cases(folder, dtype="float64")
    assert result.passed, result.reason
    has_sparse = "s" in mixers and prompt + decode >= 24
    assert (result.compared_sets > 0) == has_sparse


# ---- what is off is found -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(make_case: MakeCase) -> tuple[Path, Tensors]:
    return make_case()


def run(sound: tuple[Path, Tensors], tmp_path: Path, changes: dict[str, Any], **case: object) -> CaseResult:
    """The sound case with tensors replaced (None: removed) and fields of case.json changed."""
    folder, tensors = sound
    shutil.copytree(folder.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / folder.name
    merged = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    save_file(merged, copy / "io.safetensors")
    fields = json.loads((copy / "case.json").read_text(encoding="utf-8")) | case
    (copy / "case.json").write_text(json.dumps(fields), encoding="utf-8")
    (result,) = verify_cases(copy)
    return result


def nudged(tensor: torch.Tensor, by: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[tensor.numel() // 2] += by
    return changed


@pytest.mark.parametrize("by", [2e-3, float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prefill_logits", "prefill logits differ by"),
        ("decode_logits", "decode logits differ by"),
        ("state_prefill.layer1", "states differ by"),
        ("state_final.layer1", "states differ by"),
    ],
)
def test_a_number_that_is_off(sound: tuple[Path, Tensors], tmp_path: Path, name: str, reason: str, by: float) -> None:
    result = run(sound, tmp_path, {name: nudged(sound[1][name], by)})
    assert not result.passed
    assert result.reason.startswith(reason)


def test_numbers_within_the_limits_pass(sound: tuple[Path, Tensors], tmp_path: Path) -> None:
    changes = {
        name: nudged(tensor, 5e-4) for name, tensor in sound[1].items() if "logits" in name and "pos" not in name
    }
    result = run(sound, tmp_path, changes)
    assert result.passed, result.reason
    assert result.prefill_error == pytest.approx(5e-4, rel=0.1)


@pytest.mark.parametrize("kind", ["sel", "dsel"])
@pytest.mark.parametrize(("margin", "is_resolved"), [(2e-5, True), (1e-6, False)])
def test_a_changed_set_counts_where_the_margin_resolves_it(
    sound: tuple[Path, Tensors], tmp_path: Path, kind: str, margin: float, is_resolved: bool
) -> None:
    sets, margins = f"{kind}.layer2", f"{kind.replace('sel', 'margin')}.layer2"
    changed = sound[1][sets].clone()
    changed[1, 2, 0] ^= 1  # block 0, which every query reads
    result = run(sound, tmp_path, {sets: changed, margins: torch.full_like(sound[1][margins], margin)})
    assert (result.changed_sets, result.changed_sets_within_margin) == (1, int(is_resolved))
    assert result.passed != is_resolved
    assert ("block sets differ" in result.reason) == is_resolved


def test_another_likeliest_token_is_counted(sound: tuple[Path, Tensors], tmp_path: Path) -> None:
    logits = sound[1]["decode_logits"].clone()
    row = logits[1]
    row[int(row.argmin())] = float(row.max()) + 1
    result = run(sound, tmp_path, {"decode_logits": logits})
    assert not result.passed
    assert result.argmax_mismatches == 1


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.o_norm", "model.layers.2.mlp.down_proj", "lm_head"],
)
def test_a_weight_that_is_off(sound: tuple[Path, Tensors], tmp_path: Path, name: str) -> None:
    folder = sound[0]
    shutil.copytree(folder.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "models" / "tiny" / "model.safetensors"
    tensors = load_file(path)
    tensors[name + ".weight"].view(-1)[5] += 0.5
    save_file(tensors, path)
    (result,) = verify_cases(tmp_path / "copy")
    assert not result.passed
    assert result.reason


# ---- damaged cases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"input_ids": None}, "no tensor 'input_ids'"),
        ({"prefill_logits": None}, "no tensor 'prefill_logits'"),
        ({"decode_logits": None}, "no tensor 'decode_logits'"),
        ({"state_final.layer1": None}, "no tensor 'state_final.layer1'"),
        ({"sel.layer0": None}, "'sel.layer0' is missing"),
        ({"dsel.layer2": None}, "'dsel.layer2' is missing"),
        ({"margin.layer0": None}, "no tensor 'margin.layer0'"),
        ({"input_ids": torch.zeros(42, dtype=torch.int32)}, "tensor 'input_ids' has shape [42]"),
        ({"logits_pos": torch.arange(27, 41, dtype=torch.int32)}, "logits_pos names positions outside the prompt"),
        ({"prefill_logits": torch.zeros(14, 41)}, "tensor 'prefill_logits' has shape [14, 41]"),
        ({"decode_logits": torch.zeros(2, 40)}, "tensor 'decode_logits' has shape [2, 40]"),
        ({"state_prefill.layer1": torch.zeros(6, 6)}, "tensor 'state_prefill.layer1' has shape [6, 6]"),
        ({"sel.layer0": torch.zeros(1, 40, 3, dtype=torch.uint8)}, "tensor 'sel.layer0' has shape [1, 40, 3]"),
        ({"sel.layer0": torch.zeros(2, 40, 1, dtype=torch.uint8)}, "'sel.layer0' is too narrow for block 9"),
        ({"dmargin.layer0": torch.zeros(2, 2)}, "tensor 'dmargin.layer0' has shape [2, 2]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_tensors_are_named(
    sound: tuple[Path, Tensors], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadCheckpoint, match=re.escape(problem)) as refused:
        run(sound, tmp_path, changes)
    assert "tiny_case" in str(refused.value)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ({"prompt_len": 0}, "field prompt_len is 0"),
        ({"prompt_len": "40"}, "field prompt_len is a string"),
        ({"decode_len": -1}, "field decode_len is -1"),
        ({"model": 3}, "field model"),
        ({"model": None}, "field model"),
    ],
    ids=str,
)
def test_damaged_fields_are_named(
    sound: tuple[Path, Tensors], tmp_path: Path, case: dict[str, object], problem: str
) -> None:
    with pytest.raises(BadConfig, match=problem):
        run(sound, tmp_path, {}, **case)


def test_a_truncated_io_file(sound: tuple[Path, Tensors], tmp_path: Path) -> None:
    shutil.copytree(sound[0], tmp_path / "case")
    path = tmp_path / "case" / "io.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadCheckpoint, match=r"io\.safetensors: cannot be read"):
        verify_cases(tmp_path / "case")


def test_folders_without_cases(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no folder with a case\.json in it"):
        verify_cases(tmp_path)
    with pytest.raises(InvalidRequest, match=r"no folder with a case\.json of that name in it"):
        verify_cases(GOLDEN, names=["q9"])


def test_results_come_one_by_one(make_case: MakeCase) -> None:
    folder, _ = make_case("s", 10, 1)
    seen: list[CaseResult] = []
    results = verify_cases(folder.parent, chunk_sizes=[1, None, 4], on_case=seen.append)
    assert results == seen
    assert [result.chunk_size for result in results] == [1, None, 4]
    assert results[0].implementations["linear"] == "salalocal_kernels.ref.linear"


def test_a_kernel_that_did_not_run_fails_the_case(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose kernels do not take this model's sizes."""
    folder, _ = make_case("s", 10, 1)
    monkeypatch.setattr(dispatch, "_device_type", lambda _: "cuda")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    (result,) = verify_cases(folder)
    assert not result.passed
    assert "rms_norm ran as plain PyTorch: Triton is not installed" in result.reason
    (result,) = verify_cases(folder, dtype="float64")
    assert result.passed
