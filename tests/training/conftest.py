"""A corpus of a few made-up pages, tokenised as the real one is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from salalocal.training.filler import Corpus
from salalocal.training.passages import PassageTable, find_passages
from salalocal.training.vocabulary import train_tokenizer

PAGE = """The lantern keeper of Ostrava walked slowly along the quay. The scheduler returns a list of waiting
jobs. If the queue is empty, the worker sleeps for a second. Nobody crossed the bridge because the planks were
rotten. The committee must publish its minutes within a week. Grandmother said to the postman, Leave the parcel here.

def collect_{n}(first, second=None):
    LIMIT_{n} = {n}00
    return first

Area, total {n}: 643 sq km
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("corpus")
    words = ["river", "stone", "window", "paper", "engine", "marble", "copper", "garden", "silver", "morning"]
    rng = np.random.default_rng(0)
    texts = []
    for n in range(12):
        prose = " ".join(
            f"The {words[a]} near the {words[b]} was older than the {words[c]} of {words[d]} number {n}."
            for a, b, c, d in rng.integers(0, len(words), (160, 4))
        )
        texts.append(PAGE.replace("{n}", str(n)) + "\n" + prose.replace(". The", ".\nThe", 40))
    tokenizer = train_tokenizer(texts, 700)
    tokenizer.save(str(folder / "tokenizer.json"))
    table, ids, starts = PassageTable(), [], [0]
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        table.extend(find_passages(text, rng), encoding, starts[-1])
        ids.append(np.array(encoding.ids, np.uint16))
        starts.append(starts[-1] + len(encoding.ids))
    np.savez_compressed(
        folder / "corpus.npz",
        token_ids=np.concatenate(ids),
        text_starts=np.array(starts, np.int64),
        text_weights=np.ones(len(texts), np.float32),
        text_held_out=np.arange(len(texts)) % 4 == 3,
        **table.arrays(),
    )
    return Corpus(folder)
