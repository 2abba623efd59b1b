"""The picture of `bench long`: it can be read back, has what was measured, and is not drawn of nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from salalocal.bench.long_picture import draw_long_picture, write_long_picture
from salalocal.bench.long_rows import LongRow
from salalocal.errors import InvalidRequest

ROWS = [
    LongRow("salalocal", 1 << power, "own", "full", 8 << 30, 8192, power < 20, "a card", "a run", 2.0 ** (power - 15))
    for power in range(16, 21)
]
PEERS = [
    LongRow("dense peer", 1 << 16, "everything", "cudnn", None, 0, False, "a card", "a run", 4.0),
    LongRow("dense peer", 1 << 17, "everything", "flash", None, 0, False, "a card", "a run", 13.0),
    LongRow("dense peer", 1 << 18, "everything", "", None, 0, False, "a card", "a run", note="out of memory"),
]


def test_curves_have_colours_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    write_long_picture(path, [*ROWS, *PEERS])
    colours = {colour for _, colour in Image.open(path).convert("RGB").getcolors(1 << 20) or ()}
    assert {(40, 110, 180), (200, 80, 50)} <= colours
    assert (60, 140, 80) not in colours


@pytest.mark.parametrize("rows", [ROWS[:1], PEERS[:1], [replace(ROWS[0], tokens=100_000)]])
def test_one_row_is_a_picture_too(rows: list[LongRow]) -> None:
    assert draw_long_picture(rows).size == (1000, 640)


@pytest.mark.parametrize("rows", [[], PEERS[2:]])
def test_nothing_is_drawn_of_nothing(rows: list[LongRow], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="nothing to draw"):
        write_long_picture(tmp_path / "long.png", rows)
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_long_picture(tmp_path / "nowhere" / "long.png", ROWS)
