"""`python -m salalocal.training`: trains the embedded model. Parses, wires, logs; decides nothing about training."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from salalocal.errors import SalaError
from salalocal.training import curriculum, export
from salalocal.training.compressed import BLOCK
from salalocal.training.evaluation import score
from salalocal.training.feed import Feed
from salalocal.training.filler import Corpus
from salalocal.training.geometry import TINY, Geometry
from salalocal.training.network import AttentionMode, Execution, Network
from salalocal.training.samples import SampleShape
from salalocal.training.statements import Split
from salalocal.training.team import Team
from salalocal.training.trainer import STATE_FILE, Trainer

log = logging.getLogger("salalocal.training")

SMOKE_STEPS = 8
SHARD_BYTES = 16_000_000
LOG_FILE = "training.log"
LIBRARY_PICKS = 64
"""As many blocks of it as the released configuration selects."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m salalocal.training", description="Train the embedded model.")
    parser.add_argument("--corpus", type=Path, default=Path(".corpus"), help="folder written by training.corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder for state and the exported model")
    parser.add_argument("--deliver", type=Path, help="folder for weights in shards and the log only")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="length of the whole run, over all its processes")
    length.add_argument("--steps", type=int, help="length of the whole run in steps")
    length.add_argument("--smoke", action="store_true", help="a few steps of every stage, with speeds; saves nothing")
    length.add_argument("--evaluate", action="store_true", help="only measure the state in --out")
    parser.add_argument("--stop-after", type=float, default=1e9, help="minutes after which this process saves and ends")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--init", type=Path, help="start from the weights of an exported folder")
    parser.add_argument("--start-at", type=float, default=0.0, help="share of the run that --init has behind it")
    parser.add_argument("--seed", type=int, default=1)
    spare = ((os.cpu_count() or 1) - 2) // Team.size_by_environment()
    parser.add_argument("--workers", type=int, default=max(0, spare), help="processes that make batches, per GPU")
    parser.add_argument("--no-compile", action="store_true", help="plain PyTorch, slower")
    parser.add_argument("--sparse-method", choices=("flex", "mask"), default="flex")
    parser.add_argument(
        "--library-tokens", type=int, default=0, help="tokens of earlier batches that questions read too, per layer"
    )
    parser.add_argument("--batch-divisor", type=int, default=1, help="smaller batches for a smaller GPU")
    parser.add_argument("--tiny", action="store_true", help="a network and curriculum for a CPU")
    parser.add_argument("--evaluation-sequences", type=int, default=16, help="0 measures nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout), logging.FileHandler(options.out / LOG_FILE)]
    if Team.rank_by_environment():
        handlers = [logging.NullHandler()]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=handlers, force=True
    )
    try:
        return _train(options)
    except SalaError as error:
        log.error("%s", error)
        return 1


def _train(options: argparse.Namespace) -> int:
    corpus = Corpus(options.corpus)
    rank, size = Team.rank_by_environment(), Team.size_by_environment()
    stages = curriculum.SMALL if options.tiny else curriculum.shrunk(curriculum.FULL, options.batch_divisor)
    stages = curriculum.shrunk(stages, size)
    workers = 0 if options.evaluate else options.workers
    # The workers are forked before CUDA starts.
    with Feed(corpus, stages, workers, options.seed, rank, size) as feed:
        team = Team.join()
        network = _network(options, corpus)
        size = sum(parameter.numel() for parameter in network.parameters())
        log.info("%.2f M parameters on %s, %s", size / 1e6, network.device, network.execution)
        if options.init:
            export.load_weights(network, options.init)
        if options.library_tokens:
            network.open_libraries(options.library_tokens // BLOCK, LIBRARY_PICKS)
        if options.smoke:
            return _smoke(network, feed, stages, team)
        steps = options.steps or (1 if options.evaluate else None)
        trainer = Trainer(network, feed, stages, options.minutes, steps, team=team)
        trainer.skip_to(options.start_at)
        if options.resume or options.evaluate:
            trainer.resume(options.out)
            log.info("resumed at step %d, %.1f%%", trainer.position.step, 100 * trainer.progress)
        if not options.evaluate:
            done = trainer.run(options.out, options.stop_after)
            log.info("%s at step %d", "finished" if done else "stopped", trainer.position.step)
        team.leave()
        if team.rank:
            return 0
        export.export(network, corpus.tokenizer, options.out / "model")
        if options.deliver:
            _deliver(network, corpus, options)
        if options.evaluation_sequences:
            _evaluate(network, corpus, options)
        if options.deliver:
            shutil.copy(options.out / LOG_FILE, options.deliver / LOG_FILE)
    return 0


def _network(options: argparse.Namespace, corpus: Corpus) -> Network:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        # Stages, evaluation shapes and both gradient modes of each piece.
        torch._dynamo.config.recompile_limit = 64
    execution = Execution(
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        compile=on_gpu and not options.no_compile,
        sparse_method=options.sparse_method if on_gpu and not options.no_compile else "mask",
    )
    geometry = replace(TINY if options.tiny else Geometry(), vocab_size=corpus.tokenizer.get_vocab_size())
    return Network(geometry, execution, options.seed).to("cuda" if on_gpu else "cpu")


def _smoke(network: Network, feed: Feed, stages: tuple[curriculum.Stage, ...], team: Team) -> int:
    """A few steps of every stage with their speed."""
    for number, stage in enumerate(stages):
        # Each stage alone, as if the run stood in its middle.
        alone = tuple(replace(s, until=1.0 if i == number else 0.0) for i, s in enumerate(stages))
        trainer = Trainer(network, feed, alone, steps=SMOKE_STEPS, team=team)
        began = time.monotonic()
        times = []
        for _ in range(SMOKE_STEPS):
            start = time.monotonic()
            means = {name: float(value) for name, value in trainer.step().items()}
            times.append(time.monotonic() - start)
        tokens = stage.batch * stage.shape.tokens * team.size
        log.info(
            "stage %d %s: first step %.1f s, then %.0fk tok/s (best), %.0fk (mean of last 4); %s",
            number, stage.mode, times[0], tokens / min(times) / 1e3, 4 * tokens / sum(times[-4:]) / 1e3,
            {name: round(value, 3) for name, value in means.items()},
        )  # fmt: skip
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated() / 2**30
            log.info("stage %d took %.0f s; peak GPU memory %.1f GiB", number, time.monotonic() - began, peak)
    return 0


def _deliver(network: Network, corpus: Corpus, options: argparse.Namespace) -> None:
    """Weights in shards, config and index; the tokenizer is the corpus's and stays behind (few files may travel)."""
    scratch = options.out / "shards"
    shutil.rmtree(scratch, ignore_errors=True)
    export.export(network, corpus.tokenizer, scratch, SHARD_BYTES)
    options.deliver.mkdir(parents=True, exist_ok=True)
    for path in scratch.iterdir():
        if path.suffix == ".safetensors" or path.name in ("config.json", export.INDEX_FILE):
            shutil.copy(path, options.deliver / path.name)
    shutil.copy(options.out / LOG_FILE, options.deliver / LOG_FILE)


def _evaluate(network: Network, corpus: Corpus, options: argparse.Namespace) -> None:
    """Trained and unseen wordings on held-out text, with dense attention and with blocks selected."""
    plain = Network(network.geometry, replace(network.execution, compile=False, sparse_method="mask"))
    plain.to(network.device).load_state_dict(network.state_dict())
    long = 1024 if options.tiny else 8192
    cells: list[tuple[int, AttentionMode]] = [(long // 4, "dense"), (long, "dense"), (long, "sparse")]
    for tokens, mode in cells:
        for split in Split:
            shape = SampleShape(tokens, max(4, tokens // 90), 0.25, 8, 96)
            began = time.monotonic()
            result = score(plain, corpus, split, shape, mode, options.evaluation_sequences)
            log.info(
                "%s wordings, %d tokens, %s: %s (%.0f s)", split.value, tokens, mode, result, time.monotonic() - began
            )


__all__ = ["STATE_FILE", "main", "parse"]

if __name__ == "__main__":
    sys.exit(main())
