"""Seconds to the first token by length, as lines in a PNG. Knows no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from salalocal.atomic import replacing
from salalocal.bench.long_model import time_models
from salalocal.bench.long_rows import Key, LongRow
from salalocal.errors import InvalidRequest
from salalocal.evaluate.lengths import format_length

_WIDTH, _HEIGHT = 1000, 640
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 300, 64, 56
_INK, _PAPER, _GRID = (28, 28, 32), (255, 255, 255), (226, 226, 230)
_COLOURS = ((40, 110, 180), (200, 80, 50), (60, 140, 80), (130, 90, 170), (170, 130, 30), (90, 90, 100))
_DOT = 5
_MODEL_POINTS = 64


def write_long_picture(path: Path, rows: Sequence[LongRow]) -> None:
    """Writes the picture, whole or not at all.

    Raises:
        InvalidRequest: no row has a time, or the file cannot be written.
    """
    picture = draw_long_picture(rows)
    try:
        with replacing(path) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written ({error.strerror or error})") from error


def draw_long_picture(rows: Sequence[LongRow]) -> Image.Image:
    """The picture of `write_long_picture`, in RGB: both axes by powers, dots measured, lines a N + b N^2."""
    curves = _curves(rows)
    if not curves:
        raise InvalidRequest("nothing to draw: no text was read to its end")
    points = [point for curve in curves.values() for point in curve.items()]
    across = _Axis([math.log2(tokens) for tokens, _ in points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([math.log10(seconds) for _, seconds in points], _HEIGHT - _BOTTOM, _TOP)
    models = {model.setting: model for model in time_models(rows)}
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(image)
    device = next(row.device for row in rows if row.ttft_seconds)
    draw.text((_LEFT, 20), f"Seconds to the first token on {device}", _INK, font=large)
    _draw_grid(draw, across, up, small)
    for number, (setting, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        ends = min(curve), max(curve)
        line = list(curve.items())
        if setting in models:
            spread = [ends[0] * (ends[1] / ends[0]) ** (step / _MODEL_POINTS) for step in range(_MODEL_POINTS + 1)]
            line = [(round(tokens), models[setting].seconds(round(tokens))) for tokens in spread]
        # A fitted line may leave the positive numbers where it fits badly.
        draw.line([(across(math.log2(n)), up(math.log10(t))) for n, t in line if t > 0], colour, 2)
        for tokens, seconds in curve.items():
            x, y = across(math.log2(tokens)), up(math.log10(seconds))
            draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=colour)
        y = _TOP + 24 * number
        draw.rectangle((_WIDTH - _RIGHT + 24, y + 3, _WIDTH - _RIGHT + 36, y + 15), fill=colour)
        draw.text((_WIDTH - _RIGHT + 44, y), _name(setting), _INK, font=small)
    return image


class _Axis:
    """Places of logarithms between two pixels, a little room at both ends."""

    def __init__(self, values: Sequence[float], start: int, stop: int) -> None:
        self.low, self.high = min(values) - 0.15, max(values) + 0.15
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._stop - self._start)

    def whole(self) -> range:
        """The whole numbers on it, and the one before."""
        return range(math.floor(self.low), math.floor(self.high) + 1)

    def holds(self, value: float) -> bool:
        """Whether it is that long."""
        return self.low <= value <= self.high


def _draw_grid(
    draw: ImageDraw.ImageDraw, across: _Axis, up: _Axis, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    for power in filter(across.holds, across.whole()):
        x = across(power)
        draw.line((x, _TOP, x, _HEIGHT - _BOTTOM), _GRID)
        draw.text((x, _HEIGHT - _BOTTOM + 18), format_length(1 << power), _INK, font=font, anchor="mm")
    for power in up.whole():
        for part in (1, 2, 5):
            value = math.log10(part) + power
            if up.holds(value):
                draw.line((_LEFT, up(value), _WIDTH - _RIGHT, up(value)), _GRID)
                draw.text((_LEFT - 10, up(value)), f"{part * 10.0**power:g} s", _INK, font=font, anchor="rm")
    draw.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14), "tokens", _INK, font=font, anchor="mm")


def _curves(rows: Sequence[LongRow]) -> dict[Key, dict[int, float]]:
    """Tokens -> seconds by setting; a row of its own run counts before one noted on the way."""
    curves: dict[Key, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: (not row.staged, row.tokens)):
        if row.ttft_seconds:
            curves.setdefault(row.setting, {})[row.tokens] = row.ttft_seconds
    return {setting: dict(sorted(curve.items())) for setting, curve in curves.items()}


def _name(setting: Key) -> str:
    model, selection, prefill, gpu_memory, chunk, _, kv, is_pinned = setting
    if model != "salalocal":
        return str(model)
    cap = f", {int(str(gpu_memory)) / 2**30:g} GiB" if gpu_memory else ""
    kept = f", K and V in {kv}" if kv != "full" else ""
    kept += "" if is_pinned else ", not page-locked"
    return f"{selection}, {prefill}{cap}{kept}, chunks of {format_length(int(str(chunk)))}"
