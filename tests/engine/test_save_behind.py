"""A session that saves itself while it reads: when it does, what of, and that it waits for nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from naive_sala import random_ids
from replay import assert_restored

from salalocal.cache.manifest import read_manifest
from salalocal.engine import session_files, write_behind
from salalocal.engine.engine import Engine
from salalocal.errors import BadSession, Cancelled

MakeEngine = Callable[..., Engine]
# Blocks of 4, sparse from 24 tokens on. Without linear layers, without attention layers, and both.
MIXERS = ["sls", "sss", "ll"]
pytestmark = pytest.mark.usefixtures("small_files")


@pytest.mark.parametrize("mixers", MIXERS)
def test_saves_itself_while_it_reads(make_engine: MakeEngine, tmp_path: Path, mixers: str) -> None:
    engine, saved = make_engine(mixers), []
    session = engine.new_session(save_to=tmp_path)

    def look(_: object) -> None:
        session._saves._behind.wait()  # type: ignore[union-attr]
        saved.append(engine.restore(tmp_path).length if any(tmp_path.iterdir()) else None)

    session.prefill(random_ids(60), chunk_size=5, checkpoints_at=(7,), on_progress=look)
    assert saved == [None, 7, 7, 7, 7, 27, 27, 27, 27, 47, 47, 47, 60]
    assert_restored(engine.restore(tmp_path), session)


def test_steps_are_not_saved_one_by_one(make_engine: MakeEngine, tmp_path: Path, small_files: int) -> None:
    session = make_engine().new_session(save_to=tmp_path)
    session.prefill(random_ids(30))
    for token in range(small_files - 1):
        session.step(token)
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert read_manifest(tmp_path)[0].length == 30
    session.step(0)
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert read_manifest(tmp_path)[0].length == 30 + small_files


def test_also_after_a_while(make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "_EVERY_SECONDS", 0.0)
    session = make_engine().new_session(save_to=tmp_path)
    steps = session.read(random_ids(60), chunk_size=5)
    next(steps)
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert read_manifest(tmp_path)[0].length == 5


def test_goes_on_where_a_restored_session_reads_on(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine, ids = make_engine(), random_ids(90)
    first = engine.new_session(save_to=tmp_path)
    first.prefill(ids[:40], chunk_size=10, final_length=90, checkpoints_at=(10,))
    first.save(tmp_path)
    second = engine.restore(tmp_path, save_to=tmp_path)
    second.rewind(second.checkpoints[1])
    second.prefill(ids[10:], chunk_size=10, final_length=90)
    second.save(tmp_path)
    whole = engine.new_session()
    whole.prefill(ids, chunk_size=10, checkpoints_at=(10,))
    assert_restored(engine.restore(tmp_path), whole)


def test_a_cancelled_reading_is_saved(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine, cancel = make_engine(), threading.Event()
    session = engine.new_session(save_to=tmp_path)
    with pytest.raises(Cancelled):
        session.prefill(random_ids(60), chunk_size=5, on_progress=lambda _: cancel.set(), cancel=cancel)
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert_restored(engine.restore(tmp_path), session)


def test_what_is_copied_is_what_was_there(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session goes back and reads other tokens while the thread has not yet begun to write."""
    go, write = threading.Event(), session_files.SessionFiles.write

    def write_late(self: session_files.SessionFiles, commit: session_files.Commit) -> None:
        assert go.wait(60)
        write(self, commit)

    monkeypatch.setattr(session_files.SessionFiles, "write", write_late)
    engine = make_engine()
    session = engine.new_session(save_to=tmp_path)
    session.prefill(random_ids(30), chunk_size=30)
    expected = session.fork()
    for token in range(10):  # over the open block's end
        session._reader.read_chunk([token], True, False, None)
    go.set()
    session._saves._behind.wait()  # type: ignore[union-attr]
    assert_restored(engine.restore(tmp_path), expected)


def test_a_long_past_is_written_without_copies(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "_MAX_COPIED_TOKENS", 20)
    engine = make_engine()
    session = engine.new_session()
    session.prefill(random_ids(30))
    session.save_behind(tmp_path)
    session.prefill(random_ids(30, seed=1))
    assert session._saves._behind._thread is None  # type: ignore[union-attr]
    assert_restored(engine.restore(tmp_path), session)


def test_a_failing_save_does_not_stop_the_reading(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    session = engine.new_session(save_to=tmp_path)
    session.prefill(random_ids(30), checkpoints_at=(30,))
    session.save(tmp_path)
    expected = session.fork()

    def full(path: Path, _: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session_files, "write_tensors", full)
        session.prefill(random_ids(30, seed=1), chunk_size=5)
        with pytest.raises(BadSession, match="No space left on device"):
            session.save(tmp_path)
    assert caplog.text.count("no longer saved while it reads") == 1
    assert_restored(engine.restore(tmp_path), expected)
    session.save(tmp_path)
    assert_restored(engine.restore(tmp_path), session)
