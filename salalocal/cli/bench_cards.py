"""`salalocal bench cards`: what the released model would take on cards that are not here. Nothing is timed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from salalocal.byte_sizes import human_size
from salalocal.cards import CARDS, Card
from salalocal.choices import packed
from salalocal.cli.options import JsonOption
from salalocal.cli.terminal import print_json, print_note, stdout
from salalocal.config import ModelConfig
from salalocal.evaluate.lengths import format_length, parse_lengths
from salalocal.forecast import Place, make_plan, under_a_cap
from salalocal.hub import find_config
from salalocal.planner import usable_gpu_bytes

_RELEASED = "openbmb/MiniCPM-SALA"
_LEAST, _MOST = 1 << 13, 1 << 21
# As much main memory as is asked for.
_HOST_BYTES = 1 << 42
_PREFILLS = ("full", "int8", "fp8")
_HEADER = (
    f"{'card':<9} {'tokens':>7} {'GPU':>9} {'K/V in main memory':>19} {'s, full':>8} {'s, int8':>8} {'s, fp8':>8} "
    f"{'tok/s':>6}"
)


@dataclass(frozen=True)
class CardRow:
    """One length on one card.

    Attributes:
        card: its name.
        tokens: of the prompt.
        fits: beside nothing else on the card.
        gpu_bytes: the least that it needs there.
        host_bytes: of K and V in main memory; 0 where they are on the card.
        first_token_seconds: by prefill; of those formats that the card has.
        tokens_per_second: of the answer.
    """

    card: str
    tokens: int
    fits: bool
    gpu_bytes: int
    host_bytes: int
    first_token_seconds: dict[str, float]
    tokens_per_second: float


def cards(
    length: Annotated[
        str, typer.Option("--length", metavar="N,N...", help="Tokens of the texts; K is 1,024 and M 1,024 K.")
    ] = "64K,256K,1M,2M",
    json: JsonOption = False,
) -> None:
    """Compute what MiniCPM-SALA, packed in 4 bits, would take on GeForce cards. Nothing is measured.

    The formulas are those of 'salalocal plan'. A card's rates are what NVIDIA publishes, times the shares that an H100
    was measured to reach of its own published figures and that our kernels reached of that. Keys and values go to main
    memory where the card has no room for them.
    """
    lengths = parse_lengths(length, _LEAST, _MOST)
    config = packed(ModelConfig.from_json(find_config(_RELEASED)), "int4")
    assert config is not None
    rows = [card_row(card, config, tokens) for card in CARDS for tokens in lengths]
    if json:
        print_json([asdict(row) for row in rows])
        return
    stdout().print(_HEADER, style="bold")
    for row in rows:
        stdout().print(_line(row))
    print_note("computed, not measured: 'salalocal bench machine' on such a card, then 'salalocal plan', tells more")


def card_row(card: Card, config: ModelConfig, tokens: int) -> CardRow:
    """What a packed model takes on a card: without a cap, with that of the whole card, or with the one that helps."""
    rates = card.rates(config)
    free = Place(True, 2, usable_gpu_bytes(card.memory_bytes), rates)
    whole = replace(free, host_bytes=_HOST_BYTES)
    lower = under_a_cap(config, whole)
    places = [free, whole] if lower is None else [free, whole, lower[1]]
    plans = [(place, make_plan(config, tokens, place)) for place in places]
    place, planned = next((pair for pair in plans if pair[1].fits), plans[0])
    times = {}
    for prefill in _PREFILLS:
        if prefill == "full" or prefill in rates.narrow_flop:
            told = make_plan(config, tokens, replace(place, prefill=prefill)).asked.times
            assert told is not None
            times[prefill] = told
    return CardRow(
        card.name, tokens, planned.fits, planned.asked.total_bytes, planned.host_bytes,
        {prefill: told.first_token_seconds for prefill, told in times.items()}, times["full"].tokens_per_second,
    )  # fmt: skip


def _line(row: CardRow) -> str:
    cells = " ".join(f"{_seconds(row.first_token_seconds.get(prefill)):>8}" for prefill in _PREFILLS)
    away = human_size(row.host_bytes) if row.host_bytes else ""
    line = f"{row.card:<9} {format_length(row.tokens):>7} {human_size(row.gpu_bytes):>9} {away:>19} "
    if not row.fits:
        return f"{line} does not fit"
    return f"{line}{cells} {row.tokens_per_second:>6.0f}"


def _seconds(taken: float | None) -> str:
    return "" if taken is None else f"{taken:,.1f}" if taken < 100 else f"{taken:,.0f}"
