"""Run by test_killed_save: forks children that read and save without end, until somebody kills them.

Its arguments are the model's folder and, where K and V are to be in host memory, "tiered". For every line "FOLDER" on
its input a child is forked and its process id printed, and once it has ended, what it was doing; the import of torch,
which takes longer than a child lives, is done once.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from naive_sala import random_ids

import salalocal
from salalocal.cache.tiered_store import TieredStore
from salalocal.engine import session_files, write_behind
from salalocal.engine.engine import Engine
from salalocal.engine.session_files import Commit, SessionFiles

CHUNK = 8
IDS = random_ids(400)
FINAL_LENGTH = len(IDS)
# Blocks of 4 tokens of 2 kv heads, 2 attention layers: fewer slots and shorter buffers than a text takes.
_SLOTS, _STAGED, _SEGMENT_BYTES = 12, 7, 5 * 2 * 2 * 2 * 4 * 4 * 4

# What the child is doing, in memory that its parent sees.
READS, WRITES = 0, 1
_DOING = mmap.mmap(-1, 2)


def load(model: str | Path, is_tiered: bool) -> Engine:
    """The engine, and whether its K and V are in host memory."""
    if not is_tiered:
        return salalocal.load(model, device="cpu", dtype="float32")
    engine = salalocal.load(model, device="cpu", dtype="float32", kv_budget=1 << 20)
    cpu = torch.device("cpu")
    engine._tiers = TieredStore(2, 2, 4, 4, torch.float32, cpu, _SLOTS, _STAGED, _SEGMENT_BYTES)
    return engine


@contextmanager
def doing(what: int) -> Iterator[None]:
    """The parent sees it for as long as it lasts."""
    _DOING[what] = 1
    try:
        yield
    finally:
        _DOING[what] = 0


def read_and_save(engine: Engine, folder: Path) -> None:
    """Goes on where the folder is, and back to a checkpoint from time to time; every length is a multiple of CHUNK.

    One in two saves itself while it reads, and is saved from time to time as well; the other is saved after reading.
    """
    save_to = random.choice((folder, None))
    if (folder / "manifest.json").exists():
        session = engine.restore(folder, save_to=save_to)
    else:
        session = engine.new_session(save_to=save_to)
    while True:
        wanted = random.sample(range(0, len(IDS), CHUNK), 4)
        rest = IDS[session.length :][: CHUNK * random.randint(1, 20)]
        if rest:
            with doing(READS):
                session.prefill(rest, chunk_size=CHUNK, final_length=FINAL_LENGTH, checkpoints_at=wanted)
        if save_to is None or random.random() < 0.5:
            session.save(folder)
        if session.length == len(IDS) or random.random() < 0.1:
            session.rewind(random.choice(session.checkpoints))


def main(model: str, *kept: str) -> None:
    """Serves until the input ends."""
    torch.set_num_threads(1)
    session_files.FILE_TOKENS, write_behind._EVERY_TOKENS = 64, 2 * CHUNK
    write = SessionFiles.write

    def seen(self: SessionFiles, commit: Commit) -> None:
        with doing(WRITES):
            write(self, commit)

    SessionFiles.write = seen  # type: ignore[method-assign]
    engine = load(model, is_tiered="tiered" in kept)
    for line in sys.stdin:
        _DOING[READS] = _DOING[WRITES] = 0
        child = os.fork()
        if not child:
            read_and_save(engine, Path(line.rstrip("\n")))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        os.waitpid(child, 0)
        sys.stdout.write(f"{_DOING[READS]}{_DOING[WRITES]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
