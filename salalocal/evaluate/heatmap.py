"""Scores by depth and length as a picture in PNG. Knows numbers and colours, no tasks and no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from salalocal.atomic import replacing
from salalocal.errors import InvalidRequest

_CELL = (110, 46)
_LEFT, _TOP, _BOTTOM, _PAD = 110, 92, 64, 24
_INK, _PAPER, _EMPTY = (28, 28, 32), (255, 255, 255), (226, 226, 230)
# From failing to perfect: dark red over yellow to blue, which also those who do not tell red from green can.
_COLOURS = ((128, 24, 40), (222, 102, 62), (250, 214, 110), (150, 200, 214), (40, 110, 180))


DEPTH_ROWS = 10


def depth_rows() -> list[str]:
    """The names of the rows of `depth_cells`: "0-10 %" to "90-100 %"."""
    step = 100 // DEPTH_ROWS
    return [f"{row * step}-{(row + 1) * step} %" for row in range(DEPTH_ROWS)]


def depth_cells(samples: Iterable[tuple[int, float, float]]) -> dict[tuple[int, int], tuple[float, int]]:
    """(column, depth from 0 to 1, score from 0 to 100) of each sample -> cells by tenths of the depth."""
    scores: dict[tuple[int, int], list[float]] = {}
    for column, depth, score in samples:
        scores.setdefault((min(int(depth * DEPTH_ROWS), DEPTH_ROWS - 1), column), []).append(score)
    return {place: (fmean(found), len(found)) for place, found in scores.items()}


def write_heatmap(
    path: Path, title: str, columns: list[str], rows: list[str], cells: Mapping[tuple[int, int], tuple[float, int]]
) -> None:
    """Writes the picture, whole or not at all.

    Args:
        path: a .png file in a folder that is there.
        title: above the picture.
        columns, rows: their names.
        cells: (row, column) -> score from 0 to 100 and how many samples it is of; missing ones are grey.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    picture = draw_heatmap(title, columns, rows, cells)
    try:
        with replacing(path) as file:
            picture.save(file, format="PNG")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written ({error.strerror or error})") from error


def draw_heatmap(
    title: str, columns: list[str], rows: list[str], cells: Mapping[tuple[int, int], tuple[float, int]]
) -> Image.Image:
    """The picture of `write_heatmap`, in RGB."""
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    title_width = round(large.getlength(title))
    width = max(_LEFT + _CELL[0] * len(columns), _PAD + title_width) + _PAD
    image = Image.new("RGB", (width, _TOP + _CELL[1] * len(rows) + _BOTTOM), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_PAD, 18), title, _INK, font=large)
    draw.text((_PAD, _TOP - 26), "depth", _INK, font=small)
    for column, name in enumerate(columns):
        draw.text((_LEFT + _CELL[0] * (column + 0.5), _TOP - 12), name, _INK, font=small, anchor="mm")
    for row, name in enumerate(rows):
        draw.text((_LEFT - 12, _TOP + _CELL[1] * (row + 0.5)), name, _INK, font=small, anchor="rm")
        for column in range(len(columns)):
            _draw_cell(draw, row, column, cells.get((row, column)), small)
    draw.text((_PAD, image.height - _BOTTOM + 22), "score in %, number of samples; lengths in tokens", _INK, font=small)
    return image


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    row: int,
    column: int,
    cell: tuple[float, int] | None,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top = _LEFT + _CELL[0] * column, _TOP + _CELL[1] * row
    colour = _EMPTY if cell is None else score_colour(cell[0])
    draw.rectangle((left, top, left + _CELL[0] - 2, top + _CELL[1] - 2), fill=colour)
    text = "no sample" if cell is None else f"{cell[0]:.0f} %  n={cell[1]}"
    ink = _INK if sum(colour) > 380 else _PAPER
    draw.text((left + _CELL[0] / 2, top + _CELL[1] / 2), text, ink, font=font, anchor="mm")


def score_colour(score: float) -> tuple[int, int, int]:
    """The colour of a score from 0 to 100."""
    at = min(max(score, 0.0), 100.0) / 100 * (len(_COLOURS) - 1)
    low = min(int(at), len(_COLOURS) - 2)
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in zip(_COLOURS[low], _COLOURS[low + 1], strict=True))
    return red, green, blue
