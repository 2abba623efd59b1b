"""How often the network answers right, per kind of question, on held-out text: the training side's own measure.

Answers are teacher-forced: every token, the end of the turn included, must be the likeliest. The runtime's own
measure at length is `salalocal evaluate facts`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from salalocal.training.feed import make_batch
from salalocal.training.filler import Corpus
from salalocal.training.network import AttentionMode, Network
from salalocal.training.samples import SampleShape, Task
from salalocal.training.statements import ABSENT_ANSWER, Split


@dataclass(frozen=True)
class Score:
    """Right answers of questions asked, per Task, and false alarms: answerable questions taken for absent ones."""

    right: dict[Task, int]
    asked: dict[Task, int]
    false_alarms: int

    @property
    def answerable_share(self) -> float:
        """Right answers among questions whose answer is in the text."""
        tasks = [task for task in self.asked if task is not Task.ABSENT]
        return sum(self.right[t] for t in tasks) / max(1, sum(self.asked[t] for t in tasks))

    def __str__(self) -> str:
        answerable = sum(count for task, count in self.asked.items() if task is not Task.ABSENT)
        parts = [f"{t.name.lower()} {100 * self.right[t] / n:.1f}% of {n}" for t, n in sorted(self.asked.items()) if n]
        alarms = f"false alarms {100 * self.false_alarms / max(1, answerable):.1f}%"
        return f"answerable {100 * self.answerable_share:.1f}% | {' | '.join(parts)} | {alarms}"


@torch.no_grad()
def score(
    network: Network,
    corpus: Corpus,
    split: Split,
    shape: SampleShape,
    mode: AttentionMode,
    sequences: int,
    seed: int = 77,
) -> Score:
    """Ask the questions of `sequences` sequences of held-out text in wordings of `split`."""
    device = network.device
    first_absent = corpus.tokenizer.encode(" " + ABSENT_ANSWER, add_special_tokens=False).ids[0]
    right: dict[Task, int] = defaultdict(int)
    asked: dict[Task, int] = defaultdict(int)
    false_alarms = 0
    for number in range(sequences):
        batch = make_batch(corpus, shape, 1, (seed, number), split, held_out=True)
        ids = torch.from_numpy(batch.token_ids.astype(np.int64)).to(device)
        likeliest = network.logits(ids[:, :-1], mode).argmax(-1)[0].cpu().numpy()
        targets = batch.token_ids[0, 1:]
        for low, high, task_number in batch.questions[0]:
            if low < 0:
                break
            task = Task(int(task_number))
            asked[task] += 1
            right[task] += bool((likeliest[low:high] == targets[low:high]).all())
            false_alarms += bool(task is not Task.ABSENT and likeliest[low] == first_absent)
    return Score(dict(right), dict(asked), false_alarms)
