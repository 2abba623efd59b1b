"""The look: colours, fonts and the style sheet. No font or picture comes from another machine."""

from __future__ import annotations

from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import LocalFont

ASSETS = Path(__file__).parent / "assets"
STYLE_SHEET = ASSETS / "window.css"


def head_html() -> str:
    """What the page's head gets besides Gradio's own: the script that says when salalocal has stopped."""
    return f'<script type="module">{(ASSETS / "still_there.js").read_text(encoding="utf-8")}</script>'


# Sea green on paper: calm beside long text, and 4.5:1 or more on its background in both modes.
SEA = Color(
    name="sea",
    c50="#eef6f2",
    c100="#d8eae1",
    c200="#b3d5c6",
    c300="#86bba5",
    c400="#5b9e86",
    c500="#3d826b",
    c600="#2f6c58",
    c700="#275747",
    c800="#21463a",
    c900="#1c3a31",
    c950="#0e211b",
)
PAPER = Color(
    name="paper",
    c50="#faf8f4",
    c100="#f3f0e9",
    c200="#e6e1d6",
    c300="#d2cbbc",
    c400="#a39b8b",
    c500="#757063",
    c600="#585449",
    c700="#403d36",
    c800="#2a2925",
    c900="#1d1d1a",
    c950="#141412",
)


def window_theme() -> Base:
    """Gradio's base theme in our colours; light or dark follows the browser."""
    # The font comes with gradio, whose semi-bold file lacks common letters; regular and bold are whole.
    return Base(
        primary_hue=SEA,
        secondary_hue=SEA,
        neutral_hue=PAPER,
        radius_size="lg",
        font=[
            LocalFont("IBM Plex Sans", weights=(400, 700)),
            "ui-sans-serif",
            "system-ui",
            "sans-serif",
        ],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_200",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
    )
