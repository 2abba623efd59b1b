"""Seconds to the first token as a N + b N^2, from rows of many lengths. Knows no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from salalocal.bench.long_rows import Key, LongRow
from salalocal.config import ModelConfig


@dataclass(frozen=True)
class TimeModel:
    """The curve of one setting.

    Attributes:
        setting: whose, as `LongRow.setting`.
        a: seconds per token.
        b: seconds per token and token before it, times a half; the quadratic part.
        residuals: tokens -> what the model says by what was measured, less 1.
    """

    setting: Key
    a: float
    b: float
    residuals: dict[int, float]

    def seconds(self, tokens: int) -> float:
        """To the first token."""
        return self.a * tokens + self.b * tokens * tokens


def time_models(rows: Sequence[LongRow]) -> list[TimeModel]:
    """The model of every setting of ours that has two lengths or more."""
    curves: dict[Key, dict[int, LongRow]] = {}
    # A row of its own run counts before one noted on the way.
    for row in sorted(rows, key=lambda row: not row.staged):
        if row.model == "salalocal" and row.ttft_seconds is not None:
            curves.setdefault(row.setting, {})[row.tokens] = row
    return [_fitted(setting, curve) for setting, curve in curves.items() if len(curve) > 1]


def _fitted(setting: Key, curve: dict[int, LongRow]) -> TimeModel:
    """Least squares of the relative differences, so that short texts count as much as long ones."""
    measured = {tokens: row.ttft_seconds for tokens, row in sorted(curve.items()) if row.ttft_seconds is not None}
    tokens = np.array(list(measured), dtype=np.float64)
    seconds = np.array(list(measured.values()), dtype=np.float64)
    # In megatokens: squares of a million would be badly scaled beside it.
    scaled = tokens / 2**20
    columns = np.stack([scaled, scaled**2], axis=1) / seconds[:, None]
    (a, b), *_ = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)
    model = TimeModel(setting, float(a) / 2**20, float(b) / 2**40, {})
    residuals = {count: model.seconds(count) / taken - 1 for count, taken in measured.items()}
    return TimeModel(setting, model.a, model.b, residuals)


def scoring_flop(config: ModelConfig) -> float:
    """Operations of the block scores of a text of N tokens, by N^2: 2,560 for the released model.

    A query's scores take 2 D operations for every head and compressed key before it: a fine key every stride, a coarse
    one every four.
    """
    sparse = config.sparse
    assert sparse is not None
    channels = config.num_attention_heads * config.sparse_head_dim
    return len(config.sparse_layers) * channels * 5 / (4 * sparse.kernel_stride)
