"""The mean of trained models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from salalocal.training.average import main
from salalocal.training.export import export
from salalocal.training.filler import Corpus
from salalocal.training.geometry import TINY
from salalocal.training.network import Execution, Network


def exported(corpus: Corpus, folder: Path, seed: int) -> Path:
    geometry = replace(TINY, vocab_size=corpus.tokenizer.get_vocab_size())
    export(Network(geometry, Execution(), seed=seed), corpus.tokenizer, folder)
    return folder


def test_the_mean_of_two_and_of_one_twice(corpus: Corpus, tmp_path: Path) -> None:
    one, other = (exported(corpus, tmp_path / str(seed), seed) for seed in (1, 2))
    assert main([str(one), str(other), "--out", str(tmp_path / "mean")]) == 0
    assert main([str(one), str(one), "--out", str(tmp_path / "same")]) == 0
    tensors = [load_file(folder / "model.safetensors") for folder in (one, other, tmp_path / "mean", tmp_path / "same")]
    assert len({frozenset(each) for each in tensors}) == 1
    for name, value in tensors[0].items():
        mean = (value.float() + tensors[1][name].float()) / 2
        assert torch.equal(tensors[2][name], mean.bfloat16())
        assert torch.equal(tensors[3][name], value)
    assert (tmp_path / "mean" / "config.json").read_text() == (one / "config.json").read_text()


def test_a_folder_is_needed() -> None:
    with pytest.raises(SystemExit):
        main(["--out", "somewhere"])
