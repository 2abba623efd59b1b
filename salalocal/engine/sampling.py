"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, seed. Knows no text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salalocal.errors import EngineFailure, InvalidRequest
from salalocal_kernels import greedy_token, random_uniform


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


@dataclass(frozen=True)
class Choice:
    """How one token is chosen from logits, without waiting for a GPU: a captured step has it built in.

    Attributes:
        temperature, top_k, top_p, min_p: as in `Sampling`.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def __call__(self, logits: Tensor, seed: Tensor, count: Tensor) -> Tensor:
        """Chooses.

        Args:
            logits: [V].
            seed: int64 [1], the answer's.
            count: int64 [1], tokens of the answer drawn before.

        Returns:
            int64 [1], the token; -1 where NaN or +Inf is among the logits, or nothing but -Inf.
        """
        if self.temperature == 0:
            return greedy_token(logits)
        weights, ids = self._candidates(logits.double())
        sums = weights.cumsum(-1)
        # The first token whose sum passes the target; one of weight 0 passes nothing.
        place = torch.searchsorted(sums, random_uniform(seed, count) * sums[-1:], right=True)
        token = ids[place.clamp(max=len(ids) - 1)]
        return torch.where(logits.max().isfinite(), token, -1)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [C] of the tokens that may be drawn, likeliest first where any filter is on, and their ids [C]."""
        ids = torch.arange(logits.shape[0], device=logits.device)
        if self.top_k or self.min_p or self.top_p < 1:
            # Of equal logits the lower id is the likelier, as for greedy.
            logits, ids = logits.sort(descending=True, stable=True)
            size = self.top_k or len(ids)
            logits, ids = logits[:size], ids[:size]
        # The largest is subtracted first: divided by a tiny temperature it would overflow.
        probabilities = torch.softmax((logits - logits.max()) / self.temperature, dim=-1)
        if self.min_p:
            probabilities = probabilities.masked_fill(probabilities < self.min_p * probabilities[0], 0)
        if self.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.top_p * probabilities.sum(), 0)
        return probabilities, ids


class Sampler:
    """Draws one token after another; keeps the random state of one answer.

    Attributes:
        choice: how each is chosen.
        seed: the answer's.
        count: tokens drawn.
    """

    def __init__(self, sampling: Sampling) -> None:
        is_greedy = sampling.temperature == 0
        # No filter takes the likeliest token away, so all greedy answers choose alike.
        filters = (0, 1.0, 0.0) if is_greedy else (sampling.top_k, sampling.top_p, sampling.min_p)
        self.choice = Choice(sampling.temperature, *filters)
        self.seed = sampling.seed
        self.count = 0

    def __call__(self, logits: Tensor) -> int:
        """Chooses from logits [V]. Raises EngineFailure as `accept`."""
        seed, count = torch.tensor([[self.seed], [self.count]], device=logits.device)
        return self.accept(int(self.choice(logits, seed, count)))

    def accept(self, token: int) -> int:
        """Counts a token that `choice` has chosen for `seed` and `count`.

        Raises:
            EngineFailure: NaN or +Inf among the logits, or nothing but -Inf.
        """
        if token < 0:
            raise EngineFailure("the model computed NaN or Inf instead of logits; the answer was stopped")
        self.count += 1
        return token
