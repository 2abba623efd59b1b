"""How near every kernel comes to what the card allows, as bars in a PNG. Knows no clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from salalocal.atomic import replacing
from salalocal.bench.kernels import Row
from salalocal.errors import InvalidRequest

_LEFT, _BAR, _RIGHT, _TOP, _STEP, _PAD = 560, 520, 250, 84, 26, 24
_INK, _PAPER, _GRID, _FILL = (28, 28, 32), (255, 255, 255), (226, 226, 230), (40, 110, 180)


def write_picture(path: Path, device: str, rows: Sequence[Row]) -> None:
    """Writes the bars of `rows`, whole or not at all.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    picture = draw_picture(device, rows)
    try:
        with replacing(path) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written ({error.strerror or error})") from error


def draw_picture(device: str, rows: Sequence[Row]) -> Image.Image:
    """The picture of `write_picture`, in RGB."""
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    image = Image.new("RGB", (_LEFT + _BAR + _RIGHT, _TOP + _STEP * len(rows) + _PAD), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_PAD, 18), f"Kernels on {device}: share of what the card allows", _INK, font=large)
    for tenth in range(0, 11, 2):
        x = _LEFT + _BAR * tenth / 10
        draw.line((x, _TOP - 6, x, image.height - _PAD), _GRID)
        draw.text((x, _TOP - 18), f"{10 * tenth} %", _INK, font=small, anchor="mm")
    for number, row in enumerate(rows):
        top = _TOP + _STEP * number
        name = f"{row.kernel}, {row.shape}" + (f", {row.selection}" if row.selection else "")
        draw.text((_LEFT - 12, top + _STEP / 2), name, _INK, font=small, anchor="rm")
        draw.rectangle((_LEFT, top + 4, _LEFT + _BAR * min(1.0, row.of_ceiling), top + _STEP - 4), fill=_FILL)
        beside = f"{100 * row.of_ceiling:.0f} % of {row.bound}, {1000 * row.milliseconds:,.1f} us"
        draw.text((_LEFT + _BAR + 12, top + _STEP / 2), beside, _INK, font=small, anchor="lm")
    return image
