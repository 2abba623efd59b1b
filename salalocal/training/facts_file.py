"""Writes generated facts as the rows that `salalocal evaluate facts` reads, in trained or in unseen wordings.

`python -m salalocal.training.facts_file --split unseen --count 300 > facts.jsonl`. With `--of frames` the facts and
questions come from frames alone (relations, events, code), with `--of tales` all were written one by one. Knows no
model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np

from salalocal.training.lexicon import Lexicon
from salalocal.training.scenes import draw_scene
from salalocal.training.statements import Ask, Split

ABSENT_SHARE = 0.2

Origin = Literal["frames", "tales", "both"]


def rows(split: Split, count: int, seed: int, origin: Origin = "both") -> Iterator[dict[str, object]]:
    """`count` rows of fact, question and answers; one in five has neither fact nor answer ("not in the text").

    All facts come from one scene, so that names and wordings collide; no fact is asked about twice.
    """

    def belongs(ask: Ask) -> bool:
        return origin == "both" or (ask.key[0] == "tale") == (origin == "tales")

    lexicon = Lexicon(np.random.default_rng(seed))
    absent = round(count * ABSENT_SHARE)
    scene = draw_scene(lexicon, split, (2 if origin == "both" else 5) * count)
    asked: set[int] = set()
    for ask, where in scene.asks:
        statement = scene.statements[where[0]]
        if len(asked) == count - absent:
            break
        if len(where) == 1 and where[0] not in asked and statement.asks and belongs(ask):
            asked.add(where[0])
            low, high = ask.spans[0]
            yield {"fact": statement.text, "question": ask.question, "answers": [statement.text[low:high]]}
    for ask in [ask for ask in scene.absent if belongs(ask)][:absent]:
        yield {"question": ask.question}


def main() -> None:
    """Command line of the writer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", choices=[split.value for split in Split], required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--of", choices=("frames", "tales", "both"), default="both", help="where the facts come from")
    parser.add_argument("--seed", type=int, default=4242)
    arguments = parser.parse_args()
    for row in rows(Split(arguments.split), arguments.count, arguments.seed, arguments.of):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
