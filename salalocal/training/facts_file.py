"""Writes generated facts as the rows that `salalocal evaluate facts` reads, in trained or in unseen wordings.

`python -m salalocal.training.facts_file --split unseen --count 300 > facts.jsonl`. Knows no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import numpy as np

from salalocal.training.lexicon import Lexicon
from salalocal.training.scenes import draw_scene
from salalocal.training.statements import Split

ABSENT_SHARE = 0.2


def rows(split: Split, count: int, seed: int) -> Iterator[dict[str, object]]:
    """`count` rows of fact, question and answers; one in five has neither fact nor answer ("not in the text").

    All facts come from one scene, so that names and wordings collide; no fact is asked about twice.
    """
    lexicon = Lexicon(np.random.default_rng(seed))
    absent = round(count * ABSENT_SHARE)
    scene = draw_scene(lexicon, split, 2 * count)
    asked: set[int] = set()
    for ask, where in scene.asks:
        statement = scene.statements[where[0]]
        if len(asked) == count - absent:
            break
        if len(where) == 1 and where[0] not in asked and statement.asks:
            asked.add(where[0])
            low, high = ask.spans[0]
            yield {"fact": statement.text, "question": ask.question, "answers": [statement.text[low:high]]}
    for ask in scene.absent[:absent]:
        yield {"question": ask.question}


def main() -> None:
    """Command line of the writer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", choices=[split.value for split in Split], required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=4242)
    arguments = parser.parse_args()
    for row in rows(Split(arguments.split), arguments.count, arguments.seed):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
