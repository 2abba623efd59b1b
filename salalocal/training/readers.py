"""Turns the files of the training sources into plain text. Knows file formats, not packages or licences."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

_TAG = re.compile(r"<[^>]+>")
_R_STRING_HEADER = b"\x00\x04\x00\x09"
_SENTENCES = re.compile(r".{1,600}?(?:[.!?](?= )|$)(?:.{0,400}?[.!?](?= |$))?")
_BLOCK_TAGS = "p,pre,li,h1,h2,h3,h4,dt,dd,td,th"


def plain(path: Path) -> Iterator[tuple[str, str]]:
    """A text file as it is; undecodable bytes are replaced."""
    yield path.name, path.read_text("utf-8", errors="replace")


def prose(path: Path) -> Iterator[tuple[str, str]]:
    """A text, or the `text` of a JSON file, with long paragraphs split after a sentence."""
    content = path.read_text("utf-8", errors="replace")
    if path.suffix == ".json":
        content = str(json.loads(content)["text"])
    paragraphs = [part.strip() for paragraph in content.split("\n") for part in _SENTENCES.findall(paragraph)]
    yield path.stem, "\n\n".join(part for part in paragraphs if part)


def glossary(path: Path) -> Iterator[tuple[str, str]]:
    """A WordNet data file: a line of words of one meaning and their definition for each, its examples as sentences."""
    lines = []
    for row in path.read_text("utf-8", errors="replace").split("\n"):
        facts, bar, gloss = row.partition(" | ")
        if not bar or row.startswith(" "):
            continue
        fields = facts.split(" ")
        words = [fields[4 + 2 * i].partition("(")[0].replace("_", " ") for i in range(int(fields[3], 16))]
        definition, *examples = gloss.strip().split('; "')
        names = ", ".join(words)
        lines.append(f"{names[0].upper()}{names[1:]}: {definition}.")
        lines += [f"{e[0].upper()}{e[1:]}." for example in examples if len(e := example.strip('"; .')) > 20]
    for start in range(0, len(lines), 120):
        yield f"{path.suffix[1:]}-{start // 120}", "\n".join(lines[start : start + 120])


def html(path: Path) -> Iterator[tuple[str, str]]:
    """The innermost block elements of a page, one paragraph each; scripts and navigation left out."""
    tree = LexborHTMLParser(path.read_text("utf-8", errors="replace"))
    for node in tree.css("script,style,nav,header,footer"):
        node.decompose()
    paragraphs = []
    for node in tree.css(_BLOCK_TAGS):
        if node.tag != "pre" and any(inner.mem_id != node.mem_id for inner in node.css(_BLOCK_TAGS)):
            continue
        text = node.text()
        paragraphs.append(text.rstrip() if node.tag == "pre" else " ".join(text.split()))
    yield path.stem + ".html", "\n\n".join(p for p in paragraphs if p)


def scripture(path: Path) -> Iterator[tuple[str, str]]:
    """The readers' edition inside a `pythonbible` module: one paragraph a line, 60 paragraphs to a text."""
    body = path.read_text("utf-8").split('"""')[1]
    paragraphs = [line.strip() for line in re.sub(r"[\[\]]", "", body).split("\n") if line.strip()]
    for start in range(0, len(paragraphs), 60):
        yield f"kjv-{start // 60}", "\n\n".join(paragraphs[start : start + 60])


def factbook(path: Path) -> Iterator[tuple[str, str]]:
    """A country profile: one paragraph per section, one line per field."""
    profile = json.loads(path.read_text("utf-8"))
    if not isinstance(profile, dict):
        return

    def lines(value: object, label: str) -> Iterator[str]:
        if isinstance(value, dict):
            if "text" in value:
                yield f"{label}: {_TAG.sub(' ', str(value['text']))}"
            for key, inner in value.items():
                if key != "text":
                    yield from lines(inner, f"{label}, {key}" if label else str(key))

    sections = [f"{name}\n" + "\n".join(lines(value, "")) for name, value in profile.items()]
    yield path.stem, "\n\n".join(" \n".join(s.split(" \n")) for s in sections)


def r_strings(path: Path) -> Iterator[tuple[str, str]]:
    """The character vectors of an R lazy-load database (zlib members, XDR strings), 60 paragraphs to a text."""
    data = path.read_bytes()
    position, member = 0, 0
    while True:
        start = data.find(b"\x78", position)
        if start < 0:
            return
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(data[start:])
        except zlib.error:
            position = start + 1
            continue
        position = len(data) - len(unpacker.unused_data) if unpacker.eof else start + 1
        text = "\n".join(_xdr_strings(content))
        if unpacker.eof and len(text) > 10_000:
            paragraphs = re.sub(r"(?<=\S)\n(?=\S)", " ", text).split("\n\n")
            for start in range(0, len(paragraphs), 60):
                yield f"novel-{member}-{start // 60}", "\n\n".join(paragraphs[start : start + 60])
            member += 1


def _xdr_strings(content: bytes) -> Iterator[str]:
    position = content.find(_R_STRING_HEADER)
    while position >= 0:
        length = int.from_bytes(content[position + 4 : position + 8], "big")
        if length <= len(content) - position - 8:
            yield content[position + 8 : position + 8 + length].decode("utf-8", errors="replace")
            position = content.find(_R_STRING_HEADER, position + 8 + length)
        else:
            position = content.find(_R_STRING_HEADER, position + 4)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, str]]]] = {
    "plain": plain,
    "prose": prose,
    "glossary": glossary,
    "html": html,
    "scripture": scripture,
    "factbook": factbook,
    "r_strings": r_strings,
}
