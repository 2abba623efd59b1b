"""Writes `examples/kestrel-rock.pdf` from `examples/kestrel-rock.md`: the demo document as two printed pages.

A PDF by hand, with one of the fonts that every reader has built in, so that the file is small and the same
text always gives the same bytes. Knows titles, headings and paragraphs in ASCII, and no other Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "examples" / "kestrel-rock.md"
TARGET = SOURCE.with_suffix(".pdf")

PAGE_WIDTH, PAGE_HEIGHT, MARGIN = 595, 842, 72  # A4 and one inch, in points
PARAGRAPH, HEADING, TITLE = (10.5, 15.0, 6.0), (13.0, 20.0, 3.0), (20.0, 26.0, 10.0)
"""Font size, line height and the space below, in points."""

# Widths of Helvetica's characters from the space to the tilde, in thousandths of the font size.
# Source: the metrics that Adobe publishes for the 14 standard fonts.
HELVETICA = [
    *(278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278),
    *(556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556),
    *(1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778),
    *(667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556),
    *(333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556),
    *(556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584),
]


def width(text: str, size: float) -> float:
    return sum(HELVETICA[ord(character) - 32] for character in text) * size / 1000


def wrapped(text: str, size: float) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}".lstrip()
        if line and width(longer, size) > PAGE_WIDTH - 2 * MARGIN:
            yield line
            longer = word
        line = longer
    yield line


def blocks(markdown: str) -> Iterator[tuple[str, tuple[float, float, float]]]:
    for block in markdown.strip().split("\n\n"):
        marks, _, rest = block.partition(" ")
        style = {"#": TITLE, "##": HEADING}.get(marks, PARAGRAPH)
        yield (rest if style is not PARAGRAPH else block).replace("*", ""), style


def pages(markdown: str) -> list[str]:
    """One content stream per page: each line of text at its place."""
    streams: list[str] = [""]
    y = float(PAGE_HEIGHT - MARGIN)
    for text, (size, line_height, below) in blocks(markdown):
        lines = list(wrapped(text, size))
        if size != PARAGRAPH[0] and y < 2 * MARGIN:  # a heading keeps company with its text
            y = 0
        for line in lines:
            if y - line_height < MARGIN:
                streams.append("")
                y = PAGE_HEIGHT - MARGIN
            y -= line_height
            shown = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
            streams[-1] += f"BT /F1 {size} Tf {MARGIN} {y:.1f} Td ({shown}) Tj ET\n"
        y -= below
    return streams


def pdf(streams: list[str]) -> bytes:
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(streams)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, stream in enumerate(streams):
        box = f"/MediaBox [0 0 {PAGE_WIDTH} {PAGE_HEIGHT}] /Resources << /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {5 + 2 * number} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}endstream")
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    count = len(objects) + 1
    tail = f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n<< /Size {count} /Root 1 0 R >>\n"
    return f"{body}{tail}startxref\n{len(body)}\n%%EOF\n".encode("ascii")


def main() -> int:
    written = TARGET.write_bytes(pdf(pages(SOURCE.read_text("utf-8"))))
    print(f"demo_pdf: wrote {TARGET.relative_to(ROOT)}, {written:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
