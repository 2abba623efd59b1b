"""The stages of training: sequence length, attention, and how strongly the compressed keys are diluted. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from salalocal.training.samples import SampleShape

TEXT_WEIGHT = 0.4
"""Of the documents' own words: what they are about is learnt from them, but the answers are what counts."""
AUXILIARY_WEIGHT = 0.4


@dataclass(frozen=True)
class Stage:
    """One stage, up to `until` of the whole run. `log_dilution` is reached two thirds of the way through it, rising
    from the stage before. `log_crowding` is the most that a token of dense attention may stand for (see
    `network.Supervision`)."""

    until: float
    batch: int
    mode: str
    log_dilution: float
    shape: SampleShape
    log_crowding: float = 0.0


TOKENS_PER_STEP = 131_072
FULL = (
    Stage(0.07, 256, "dense", 0.0, SampleShape(512, 8, 0.36, 48, 16)),
    Stage(0.25, 64, "dense", 3.5, SampleShape(2048, 34, 0.32, 160, 48), 3.0),
    Stage(0.76, 16, "dense", 5.0, SampleShape(8192, 160, 0.22, 256, 128), 4.0),
    Stage(0.90, 4, "dense", 5.5, SampleShape(32768, 500, 0.13, 512, 320), 3.0),
    Stage(0.97, 16, "sparse", 5.5, SampleShape(8192, 160, 0.22, 256, 128)),
    # As short as what a closer look reads.
    Stage(1.00, 64, "dense", 5.5, SampleShape(2048, 34, 0.32, 160, 48)),
)
SMALL = (
    Stage(0.5, 8, "dense", 0.0, SampleShape(512, 7, 0.36, 48, 16)),
    Stage(0.8, 4, "dense", 2.0, SampleShape(1024, 13, 0.32, 96, 24)),
    Stage(1.0, 4, "sparse", 3.0, SampleShape(1024, 13, 0.32, 96, 24)),
)
"""For smoke tests on a CPU."""


def shrunk(stages: tuple[Stage, ...], divisor: int) -> tuple[Stage, ...]:
    """The same stages with batches divided, for a smaller GPU."""
    return tuple(replace(stage, batch=max(1, stage.batch // divisor)) for stage in stages)


def stage_at(stages: tuple[Stage, ...], progress: float) -> int:
    """Index of the stage for a share of the run done."""
    return next((i for i, stage in enumerate(stages) if progress < stage.until), len(stages) - 1)


def log_dilution(stages: tuple[Stage, ...], index: int, progress: float) -> float:
    """What is added to the log of the other keys' scores at this point of the run."""
    before = stages[index - 1] if index else None
    start, low = (before.until, before.log_dilution) if before else (0.0, 0.0)
    share = (progress - start) / (stages[index].until - start)
    return low + (stages[index].log_dilution - low) * min(1.0, max(0.0, 1.5 * share))
