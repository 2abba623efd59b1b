"""One training run: steps, log lines, checkpoints, and going on from one.

How far the run is decides stage and rates: by time where it is given minutes, by steps where it is given steps (then
the same seed gives the same run, and a resumed run gives the next loss that the first would have given).
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from salalocal.errors import EngineFailure
from salalocal.training.curriculum import AUXILIARY_WEIGHT, TEXT_WEIGHT, Stage, log_dilution, stage_at
from salalocal.training.feed import Batch, Feed
from salalocal.training.library import Asked
from salalocal.training.network import AttentionMode, Network, Supervision
from salalocal.training.optimizer import WARM_UP_STEPS, Optimizer, rate_factor
from salalocal.training.samples import ANSWER, TEXT
from salalocal.training.team import Team

log = logging.getLogger(__name__)

STATE_FILE = "state.pt"
LIBRARY_QUERIES = 512
"""Tokens of a batch that read the library, at most."""
LIBRARY_SPARED_SHARE = 0.2
"""Of the sequences so many are read alone, as short texts are."""
WARMING_STEPS = 3
"""First steps of a stage in a process compile kernels; they do not count towards the run's minutes."""


@dataclass
class Position:
    """Where a run stands: steps, batches taken of the current stage, tokens and seconds of training."""

    step: int = 0
    stage: int = 0
    index: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """Means over one step: text and answer loss in nats, share of answer tokens right, loss on compressed keys, share
    of sources among the best keys."""

    text_loss: float
    answer_loss: float
    answer_hits: float
    auxiliary: float
    found: float

    def __str__(self) -> str:
        return (
            f"text {self.text_loss:.3f} answer {self.answer_loss:.3f} hits {self.answer_hits:.3f} "
            f"aux {self.auxiliary:.3f} found {self.found:.3f}"
        )


@dataclass
class Trainer:
    """Trains `network` on a feed through `stages`; exactly one of `minutes` and `steps` says how long.

    Of a team every process has a trainer, with its own share of each batch; the first one's clock counts.
    """

    network: Network
    feed: Feed
    stages: tuple[Stage, ...]
    minutes: float | None = None
    steps: int | None = None
    warm_up_steps: int = WARM_UP_STEPS
    team: Team = field(default_factory=Team)
    position: Position = field(default_factory=Position)

    def __post_init__(self) -> None:
        self.optimizer = Optimizer(self.network)
        self._device = self.network.device

    @property
    def progress(self) -> float:
        """Share of the whole run done."""
        if self.steps is not None:
            return self.position.step / self.steps
        assert self.minutes is not None
        return self.position.seconds / (60 * self.minutes)

    def skip_to(self, share: float) -> None:
        """Begin at this share of the run, with weights from elsewhere and an optimizer without memory."""
        self.position.seconds = share * 60 * (self.minutes or 0)
        self.position.step = round(share * (self.steps or 0))

    def step(self) -> dict[str, Tensor]:
        """One step; returns the means of `StepResult` as tensors, so that nothing waits for the GPU."""
        progress = self.team.agree(self.progress)[0]
        stage_number = stage_at(self.stages, progress)
        if stage_number != self.position.stage:
            self.position.stage, self.position.index = stage_number, 0
        stage = self.stages[stage_number]
        batch = self.feed.batch(stage_number, self.position.index)
        means = self._backward(batch, stage, log_dilution(self.stages, stage_number, progress))
        self.team.average(self.network.parameters())
        self.optimizer.step(rate_factor(self.position.step, progress, self.warm_up_steps))
        self.position.step += 1
        self.position.index += 1
        self.position.tokens += batch.roles.size * self.team.size
        return means

    def _backward(self, batch: Batch, stage: Stage, dilution: float) -> dict[str, Tensor]:
        ids = self._tensor(batch.token_ids)
        roles = self._tensor(batch.roles)
        supervision = Supervision(
            self._tensor(batch.queries),
            self._tensor(batch.sources),
            self._tensor(batch.document_end),
            torch.tensor(dilution, device=self._device),
            self._tensor(batch.far).float()
            * torch.from_numpy(batch.crowding * stage.log_crowding)[:, None].to(self._device, non_blocking=True),
            self._asked(batch),
        )
        mode: AttentionMode = "sparse" if stage.mode == "sparse" else "dense"
        entropy, hits, auxiliary, found = self.network(ids[:, :-1], ids[:, 1:], mode, supervision)
        is_text, is_answer = (roles == TEXT).float(), (roles == ANSWER).float()
        answers = is_answer.sum().clamp(min=1)
        text_loss = (entropy * is_text).sum() / is_text.sum().clamp(min=1)
        answer_loss = (entropy * is_answer).sum() / answers
        (TEXT_WEIGHT * text_loss + answer_loss + AUXILIARY_WEIGHT * auxiliary).backward()
        return {
            "text_loss": text_loss.detach(),
            "answer_loss": answer_loss.detach(),
            "answer_hits": (hits.float() * is_answer).sum() / answers,
            "auxiliary": auxiliary.detach(),
            "found": found.detach(),
        }

    def _asked(self, batch: Batch) -> Asked:
        """The tokens before the first answers of every sequence, and whether they read the library."""
        count = min(batch.questions.shape[1], max(1, LIBRARY_QUERIES // len(batch.questions)))
        is_open = self._tensor(batch.crowding >= LIBRARY_SPARED_SHARE).bool()
        return Asked(self._tensor(batch.questions[:, :count, 0]), is_open)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self._device, non_blocking=True)

    def run(
        self, folder: Path, stop_after_minutes: float, log_every: int = 50, save_every_minutes: float = 2.0
    ) -> bool:
        """Train until the run is done or the process has had its minutes; saves to `folder`. True when done."""
        began = saved = reported = time.monotonic()
        reported_tokens, warming, stage = self.position.tokens, WARMING_STEPS, -1
        while self._goes_on(began, stop_after_minutes):
            before = time.monotonic()
            means = self.step()
            if self.position.stage != stage:
                stage, warming = self.position.stage, WARMING_STEPS
                log.info("stage %d: %s", stage, self.stages[stage])
            if warming:
                # Reading the values waits for the device, so compilation stays out of the next steps' time.
                log.info("step %d %s (%.1f s)", self.position.step, _result(means), time.monotonic() - before)
                warming -= 1
                reported, reported_tokens = time.monotonic(), self.position.tokens
                continue
            if self.position.step % log_every == 0:
                values = _result(means)
                now = time.monotonic()
                speed = (self.position.tokens - reported_tokens) / max(1e-9, now - reported)
                log.info(
                    "step %d %4.1f%% stage %d %s | %.0fk tok/s, %.0fM tokens, %.0f s",
                    self.position.step, 100 * self.progress, stage, values, speed / 1e3, self.position.tokens / 1e6,
                    self.position.seconds,
                )  # fmt: skip
                if not np.isfinite(values.text_loss + values.answer_loss):
                    raise EngineFailure(
                        f"the loss is no longer finite at step {self.position.step}; the last state in {folder} is good"
                    )
                reported, reported_tokens = now, self.position.tokens
            self.position.seconds += time.monotonic() - before
            if time.monotonic() - saved > 60 * save_every_minutes:
                self.save(folder)
                saved = time.monotonic()
        self.save(folder)
        return self.team.agree(self.progress)[0] >= 1

    def _goes_on(self, began: float, stop_after_minutes: float) -> bool:
        in_time = time.monotonic() - began < 60 * stop_after_minutes
        return bool(self.team.agree(self.progress < 1 and in_time)[0])

    def save(self, folder: Path) -> None:
        """Write the whole state; an interrupted write leaves the one before. Only the first of a team writes."""
        if self.team.rank:
            return
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": vars(self.position),
        }
        temporary = folder / (STATE_FILE + ".new")
        torch.save(state, temporary)
        os.replace(temporary, folder / STATE_FILE)

    def resume(self, folder: Path) -> None:
        """Go on from the state in `folder`."""
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location=self._device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])


def _result(means: dict[str, Tensor]) -> StepResult:
    return StepResult(**{name: float(value) for name, value in means.items()})
