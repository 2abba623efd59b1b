"""A run that is killed anywhere leaves no model behind, and the next one makes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from salalocal.errors import BadConfig, InvalidRequest, ModelNotFound
from salalocal.hub import find_model
from salalocal.quantizer import QuantizeProgress, quantize, run

MakeModel = Callable[..., Path]
ONE_LAYER_BYTES = 64 << 10


class Killed(BaseException):
    """Stands for a process that ends: nothing may catch it."""


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHARD_BYTES", ONE_LAYER_BYTES)


def stop_after(modules: int) -> Callable[[QuantizeProgress], None]:
    seen = []

    def on_progress(progress: QuantizeProgress) -> None:
        seen.append(progress)
        if len(seen) == modules:
            raise Killed

    return on_progress


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("many_shards")
def test_a_model_of_several_files_has_an_index_and_the_same_weights(make_model: MakeModel, tmp_path: Path) -> None:
    from salalocal.weights.safetensors_source import SafetensorsSource

    source = make_model()
    several = SafetensorsSource(quantize(source, tmp_path / "several").path)
    files = {tensor.file for tensor in several.tensors.values()}
    assert len(files) >= 3
    assert all(name.endswith(f"-of-{len(files):05d}.safetensors") for name in files)
    run.SHARD_BYTES = 1 << 30  # undone with the fixture's patch
    single = SafetensorsSource(quantize(source, tmp_path / "single").path)
    assert set(single.tensors) == set(several.tensors)
    assert all(bool((single.read(name) == several.read(name)).all()) for name in single.tensors)


@pytest.mark.usefixtures("many_shards")
def test_stopped_after_any_weight_it_goes_on_to_the_same_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    source, whole = make_model(), tmp_path / "whole"
    progress: list[QuantizeProgress] = []
    quantize(source, whole, on_progress=progress.append)
    for stop in range(1, len(progress) + 1, 4):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(Killed):
            quantize(source, out, on_progress=stop_after(stop))
        assert not (out / "config.json").exists()
        with pytest.raises(ModelNotFound):
            find_model(out)
        report = quantize(source, out)
        assert contents(out) == contents(whole), f"stopped after {stop}"
        assert all(kind.matrices for kind in report.kinds)


@pytest.mark.usefixtures("many_shards")
def test_finished_files_are_kept_and_damaged_ones_made_again(make_model: MakeModel, tmp_path: Path) -> None:
    source, whole, out = make_model(), tmp_path / "whole", tmp_path / "out"
    total: list[QuantizeProgress] = []
    quantize(source, whole, on_progress=total.append)
    with pytest.raises(Killed):
        quantize(source, out, on_progress=stop_after(len(total)))
    kept, damaged = sorted(out.glob("*.safetensors"))[:2]
    before = kept.stat()
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    (out / ".model-00009-of-00009.safetensors.0123abcd.partial").write_bytes(b"left by a killed process")
    quantize(source, out)
    assert contents(out) == contents(whole)
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_killed_process_is_continued(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, whole = make_model(), tmp_path / "out", tmp_path / "whole"
    code = (
        "import os, signal, sys\n"
        "from salalocal.quantizer import quantize, run\n"
        f"run.SHARD_BYTES = {ONE_LAYER_BYTES}\n"
        "def on_progress(progress):\n"
        "    if progress.module == 'model.layers.2.mlp.up_proj':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantize(sys.argv[1], sys.argv[2], on_progress=on_progress)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(source), str(out)], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert list(out.glob("*.safetensors"))
    assert not (out / "config.json").exists()
    monkeypatch.setattr(run, "SHARD_BYTES", ONE_LAYER_BYTES)
    quantize(source, out)
    quantize(source, whole)
    assert contents(out) == contents(whole)


@pytest.mark.usefixtures("many_shards")
def test_an_unfinished_run_of_something_else_is_not_continued(make_model: MakeModel, tmp_path: Path) -> None:
    source, out = make_model(), tmp_path / "out"
    with pytest.raises(Killed):
        quantize(source, out, on_progress=stop_after(20))
    left = contents(out)
    with pytest.raises(InvalidRequest, match="an unfinished run from other weights or with other settings"):
        quantize(source, out, format="int8")
    with pytest.raises(InvalidRequest, match="an unfinished run"):
        quantize(source, out, zero_point=True)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(InvalidRequest, match="an unfinished run from other weights"):
        quantize(source, out)
    assert contents(out) == left


@pytest.mark.parametrize("text", ["{", '{"version": 1}', '{"version": "1", "job": {}}'])
def test_a_damaged_manifest_is_named(make_model: MakeModel, tmp_path: Path, text: str) -> None:
    source, out = make_model(), tmp_path / "out"
    with pytest.raises(Killed):
        quantize(source, out, on_progress=stop_after(2))
    (out / "quantize.json").write_text(text)
    with pytest.raises((BadConfig, InvalidRequest), match=r"quantize\.json|unfinished run"):
        quantize(source, out)
