"""A tiny run on the CPU: the loss falls, a resumed run goes on as the first would have, the export reads back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from salalocal.training.curriculum import Stage, log_dilution, stage_at
from salalocal.training.evaluation import score
from salalocal.training.export import export, export_master, load_weights, read_geometry
from salalocal.training.feed import Feed
from salalocal.training.filler import Corpus
from salalocal.training.geometry import TINY
from salalocal.training.network import Execution, Network
from salalocal.training.samples import SampleShape
from salalocal.training.statements import Split
from salalocal.training.trainer import Trainer

STAGES = (
    Stage(0.5, 2, "dense", 0.0, SampleShape(384, 3, 0.4, 16, 8)),
    Stage(1.0, 1, "sparse", 2.0, SampleShape(512, 6, 0.4, 32, 12)),
)


def tiny_network(corpus: Corpus) -> Network:
    geometry = replace(TINY, vocab_size=corpus.tokenizer.get_vocab_size())
    return Network(geometry, Execution(window=128, picks=2), seed=3)


def loss_of(trainer: Trainer) -> float:
    means = trainer.step()
    return float(means["text_loss"] + means["answer_loss"] + means["auxiliary"])


def test_the_loss_falls_and_a_resumed_run_is_the_same_run(corpus: Corpus, tmp_path: Path) -> None:
    with Feed(corpus, STAGES, workers=0, seed=1) as feed:
        trainer = Trainer(tiny_network(corpus), feed, STAGES, steps=36, warm_up_steps=4)
        losses = []
        for step in range(22):
            if step == 17:
                trainer.save(tmp_path)
            losses.append(loss_of(trainer))
        assert sum(losses[13:17]) < sum(losses[:4]) - 4
        resumed = Trainer(tiny_network(corpus), feed, STAGES, steps=36, warm_up_steps=4)
        resumed.resume(tmp_path)
        again = [loss_of(resumed) for _ in range(5)]
    assert again == pytest.approx(losses[17:], rel=1e-5)


def test_workers_give_the_batches_that_no_workers_give(corpus: Corpus) -> None:
    with Feed(corpus, STAGES, workers=0, seed=5) as alone, Feed(corpus, STAGES, workers=2, seed=5) as feed:
        for stage, index in ((0, 3), (0, 4), (0, 5), (1, 0), (1, 1)):
            assert (feed.batch(stage, index).token_ids == alone.batch(stage, index).token_ids).all()


def test_run_finishes_and_saves(corpus: Corpus, tmp_path: Path) -> None:
    with Feed(corpus, STAGES, workers=0, seed=1) as feed:
        trainer = Trainer(tiny_network(corpus), feed, STAGES, steps=4)
        assert trainer.run(tmp_path, stop_after_minutes=5, log_every=2)
    assert (tmp_path / "state.pt").is_file()
    assert trainer.position.step == 4


def test_an_export_reads_back_whole_and_in_shards(corpus: Corpus, tmp_path: Path) -> None:
    network = tiny_network(corpus)
    export(network, corpus.tokenizer, tmp_path / "whole")
    export(network, corpus.tokenizer, tmp_path / "shards", shard_bytes=60_000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in (tmp_path / "whole", tmp_path / "shards"):
        assert read_geometry(folder) == network.geometry
        back = Network(read_geometry(folder), Execution(), seed=9)
        load_weights(back, folder)
        for name, value in network.state_dict().items():
            assert torch.equal(back.state_dict()[name], value.bfloat16().float()), name


def test_a_master_reads_back_to_half_a_step_of_its_rows(corpus: Corpus, tmp_path: Path) -> None:
    network = tiny_network(corpus)
    export_master(network, tmp_path)
    back = Network(network.geometry, Execution(), seed=9)
    load_weights(back, tmp_path)
    for name, value in network.state_dict().items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.ndim == 2 else torch.zeros(())
        assert ((back.state_dict()[name] - value).abs() <= 0.501 * step + 1e-7).all(), name


def test_scores_count_every_question_once(corpus: Corpus) -> None:
    result = score(tiny_network(corpus), corpus, Split.UNSEEN, STAGES[1].shape, "dense", 6)
    assert sum(result.asked.values()) > 4
    assert sum(result.right.values()) <= sum(result.asked.values())
    assert result.answerable_share <= 1


def test_stages_and_dilution_follow_progress() -> None:
    assert [stage_at(STAGES, p) for p in (0.0, 0.49, 0.5, 0.99, 1.0)] == [0, 0, 1, 1, 1]
    assert log_dilution(STAGES, 1, 0.5) == 0.0
    assert log_dilution(STAGES, 1, 0.75) == pytest.approx(1.5)
    assert log_dilution(STAGES, 1, 0.9) == 2.0


def test_a_run_begun_in_the_middle_takes_the_stage_of_the_middle(corpus: Corpus) -> None:
    with Feed(corpus, STAGES, workers=0, seed=1) as feed:
        trainer = Trainer(tiny_network(corpus), feed, STAGES, steps=10)
        trainer.skip_to(0.6)
        trainer.step()
    assert trainer.position.stage == 1
    assert trainer.position.step == 7
