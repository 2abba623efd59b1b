"""Run by test_killed_save: forks children that read and save without end, until somebody kills them.

For every line "FOLDER" on its input a child is forked and its process id printed; the import of torch, which takes
longer than a child lives, is done once.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from naive_sala import random_ids

import salalocal
from salalocal.engine import session_files, write_behind
from salalocal.engine.engine import Engine

CHUNK = 8
IDS = random_ids(400)
FINAL_LENGTH = len(IDS)


def read_and_save(engine: Engine, folder: Path) -> None:
    """Goes on where the folder is, and back to a checkpoint from time to time; every length is a multiple of CHUNK."""
    if (folder / "manifest.json").exists():
        session = engine.restore(folder, save_to=folder)
    else:
        session = engine.new_session(save_to=folder)
    while True:
        wanted = random.sample(range(0, len(IDS), CHUNK), 4)
        rest = IDS[session.length :][: CHUNK * random.randint(1, 20)]
        if rest:
            session.prefill(rest, chunk_size=CHUNK, final_length=FINAL_LENGTH, checkpoints_at=wanted)
        if random.random() < 0.5:
            session.save(folder)
        if session.length == len(IDS) or random.random() < 0.1:
            session.rewind(random.choice(session.checkpoints))


def main(model: str) -> None:
    """Serves until the input ends."""
    torch.set_num_threads(1)
    session_files.FILE_TOKENS, write_behind._EVERY_TOKENS = 64, 2 * CHUNK
    engine = salalocal.load(model, device="cpu", dtype="float32")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            read_and_save(engine, Path(line.rstrip("\n")))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
