"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, seed. Knows no text."""

from __future__ import annotations

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
            ("temperature", self.temperature, (int, float), 0.0, 100.0),
            ("top_k", self.top_k, (int,), 0, 1 << 24),
            ("top_p", self.top_p, (int, float), 1e-9, 1.0),
            ("min_p", self.min_p, (int, float), 0.0, 1.0),
            ("seed", self.seed, (int,), 0, (1 << 63) - 1),
            ("max_tokens", self.max_tokens, (int,), 1, 1 << 31),
        )
        for name, value, kinds, low, high in limits:
            # NaN and infinity fail the comparison.
            if not (isinstance(value, kinds) and low <= value <= high):
                kind = "a whole number" if kinds == (int,) else "a number"
                raise InvalidRequest(f"{name} is {value!r}; allowed is {kind} from {low} to {high}")
        # A string is a sequence of strings too: its letters would all be stop texts.
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise InvalidRequest("stop takes a list of texts, none of them empty")
        if len(self.stop) > 16:
            raise InvalidRequest(f"stop has {len(self.stop)} texts; at most 16 are allowed")


class Sampler:
    """Draws one token after another; keeps the random state of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> int:
        """Chooses from logits [V] float32.

        Raises:
            EngineFailure: NaN or +Inf among the logits, or nothing but -Inf.
        """
        if not bool(logits.max().isfinite()):
            raise EngineFailure("the model computed NaN or Inf instead of logits; the answer was stopped")
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities, ids = self._candidates(logits.double().cpu())
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [C] of the tokens that may be drawn, likeliest first where any filter is on, and their ids [C]."""
        sampling = self._sampling
        ids = torch.arange(logits.shape[0])
        if sampling.top_k or sampling.min_p or sampling.top_p < 1:
            # Of equal logits the lower id is the likelier, as for greedy.
            logits, ids = logits.sort(descending=True, stable=True)
            size = sampling.top_k or len(ids)
            logits, ids = logits[:size], ids[:size]
        # The largest is subtracted first: divided by a tiny temperature it would overflow.
        probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
        if sampling.min_p:
            probabilities = probabilities.masked_fill(probabilities < sampling.min_p * probabilities[0], 0)
        if sampling.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= sampling.top_p * probabilities.sum(), 0)
        return probabilities, ids
