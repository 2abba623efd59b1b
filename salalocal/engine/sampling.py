"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, seed. Knows no text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.errors import EngineFailure, InvalidRequest


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when an answer ends.

    Attributes:
        temperature: 0 is greedy.
        top_k: only the k likeliest; 0 is off.
        top_p: the smallest set with this share of the probability; 1 is off.
        min_p: only tokens at least this share of the likeliest one's probability; 0 is off.
        seed: the same seed and prompt give the same answer on the same machine.
        max_tokens: an answer ends here at the latest.
        stop: an answer ends before any of these texts.

    Raises:
        InvalidRequest: a field out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_k", self.top_k, 0, 1 << 24),
            ("top_p", self.top_p, 1e-9, 1.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("seed", self.seed, 0, (1 << 63) - 1),
            ("max_tokens", self.max_tokens, 1, 1 << 31),
        )
        for name, value, low, high in limits:
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidRequest(f"{name} is {value}; allowed is {low} to {high}")
        if len(self.stop) > 16 or not all(self.stop):
            raise InvalidRequest("stop takes at most 16 texts, none of them empty")


class Sampler:
    """Draws one token after another; keeps the random state of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """Chooses from logits [V] float32.

        Raises:
            EngineFailure: NaN or +Inf among the logits.
        """
        if not bool((logits < torch.inf).all()):
            raise EngineFailure("the model computed NaN or Inf instead of logits; the answer was stopped")
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = self._filtered(logits.double().cpu())
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _filtered(self, logits: Tensor) -> Tensor:
        sampling = self._sampling
        if sampling.top_k:
            threshold = logits.topk(min(sampling.top_k, logits.shape[0])).values[-1]
            logits = logits.masked_fill(logits < threshold, -torch.inf)
        probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
        if sampling.min_p:
            probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities.max(), 0)
        if sampling.top_p < 1:
            ordered, index = probabilities.sort(descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            dropped = before >= sampling.top_p * ordered.sum()
            probabilities[index[dropped]] = 0
        return probabilities / probabilities.sum()
