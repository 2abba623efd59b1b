"""What is saved comes back: a restored session is bit-equal to the one that was never saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_sala import random_ids, tiny_config, write_model
from replay import Tracked, assert_restored, assert_same

import salalocal
from salalocal.cache.manifest import read_manifest
from salalocal.engine import session_files
from salalocal.engine.engine import Engine
from salalocal.errors import BadSession, ContextTooLong, InvalidRequest

MakeEngine = Callable[..., Engine]
# Blocks of 4, sparse from 24 tokens on. Without linear layers, without attention layers, and both.
MIXERS = ["sls", "sss", "ll"]
pytestmark = pytest.mark.usefixtures("small_files")


# ---- save and restore ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 23, 24, 25, 47, 48, 49, 90])
def test_round_trip_at_every_kind_of_length(make_engine: MakeEngine, tmp_path: Path, mixers: str, length: int) -> None:
    engine = make_engine(mixers)
    session = engine.new_session()
    if length:
        session.prefill(random_ids(length), chunk_size=10, checkpoints_at=(0, 1, 8, 20, 33, length))
    session.save(tmp_path / "saved")
    assert_restored(engine.restore(tmp_path / "saved"), session)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_round_trip_in_every_dtype(make_engine: MakeEngine, tmp_path: Path, dtype: str) -> None:
    engine = make_engine(dtype=dtype)
    session = engine.new_session()
    session.prefill(random_ids(53), chunk_size=9, checkpoints_at=(20,))
    session.save(tmp_path / "saved")
    assert_restored(engine.restore(tmp_path / "saved"), session)


def test_always_dense_model(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine("ss", sparse_config=None)
    session, ids = engine.new_session(), random_ids(150)
    session.prefill(ids)
    session.keep_common([*ids[:100], 1])  # logits at 100 are not known
    assert session.logits is None
    session.save(tmp_path / "saved")
    assert_restored(engine.restore(tmp_path / "saved"), session)


def test_selections_are_recorded_after_a_restore(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    session = engine.new_session(record_selection=True)
    session.prefill(random_ids(60))
    session.save(tmp_path / "saved")
    restored = engine.restore(tmp_path / "saved", record_selection=True)
    assert restored.selected_blocks(0) is None
    session.step(1), restored.step(1)
    found, expected = restored.selected_blocks(0), session.selected_blocks(0)
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_pages_that_do_not_lie_in_a_row(make_engine: MakeEngine, tmp_path: Path) -> None:
    one = Tracked.new(make_engine())
    one.read(random_ids(30))
    two = one.fork()
    for step in range(20):  # both take pages in turns
        one.read([step])
        two.read([20 + step])
    for tracked, name in ((one, "one"), (two, "two")):
        tracked.session.save(tmp_path / name)
        assert_restored(tracked.engine.restore(tmp_path / name), tracked.session)


def test_a_second_save_writes_only_what_is_new(make_engine: MakeEngine, tmp_path: Path) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(48), checkpoints_at=(48,))
    session.save(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    session.save(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before, "nothing is new"
    session.prefill(random_ids(9, seed=1))
    session.save(tmp_path)
    manifest, _ = read_manifest(tmp_path)
    assert [(file.start, file.stop) for file in manifest.tokens] == [(0, 24), (24, 48), (48, 56), (56, 57)]
    assert [file.position for file in manifest.states] == [48, 57]
    assert {file.name for file in (*manifest.tokens[:2], manifest.states[0])} <= set(before)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *manifest.file_names}


def test_many_small_turns_make_few_files(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_files, "FILE_TOKENS", 1 << 20)
    engine = make_engine("sl")
    session = engine.new_session()
    for turn in range(100):
        session.prefill(random_ids(5, seed=turn))
        session.save(tmp_path)
    assert len(read_manifest(tmp_path)[0].tokens) < 10
    assert_restored(engine.restore(tmp_path), session)


def test_restore_leaves_the_folder_and_others_alone(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    session = engine.new_session()
    session.prefill(random_ids(41), checkpoints_at=(20,))
    session.save(tmp_path / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    one, other = engine.restore(tmp_path / "a"), engine.restore(tmp_path / "a")
    one.prefill(random_ids(30, seed=1))
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert_restored(other, session)
    one.save(tmp_path / "a")
    other.prefill([1, 2, 3])
    other.save(tmp_path / "a")  # of another past than what is there now
    assert_restored(engine.restore(tmp_path / "a"), other)


def test_a_fork_is_saved_by_itself(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    session = engine.new_session(save_to=tmp_path / "a")
    session.prefill(random_ids(30))
    fork = session.fork()
    fork.prefill(random_ids(50, seed=1))
    session.save(tmp_path / "a")
    fork.save(tmp_path / "b")
    assert_restored(engine.restore(tmp_path / "a"), session)
    assert_restored(engine.restore(tmp_path / "b"), fork)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_done_between_saves(make_engine: MakeEngine, tmp_path: Path, data: st.DataObject) -> None:
    engine, folder = make_engine(data.draw(st.sampled_from(MIXERS))), tmp_path / str(len(list(tmp_path.iterdir())))
    session = engine.new_session()
    for turn in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["read", "read", "step", "rewind", "save", "save", "restore"]))
        if action == "read":
            at = session.length + data.draw(st.integers(0, 40))
            count = data.draw(st.integers(1, 60))
            session.prefill(random_ids(count, seed=turn), chunk_size=13, checkpoints_at=(at,))
        elif action == "step":
            session.step(turn)
        elif action == "rewind":
            session.rewind(data.draw(st.sampled_from(session.checkpoints)))
        else:
            session.save(folder)
            restored = engine.restore(folder)
            assert_same(restored, session)
            session = restored if action == "restore" else session
    session.save(folder)
    assert_restored(engine.restore(folder), session)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_nothing_saved_there(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("", "missing", "file"):
        with pytest.raises(BadSession, match="no saved session here"):
            make_engine().restore(tmp_path / name)


def test_folders_of_others_are_not_written_to(make_engine: MakeEngine, tmp_path: Path) -> None:
    session = make_engine().new_session()
    (tmp_path / "manifest.json").write_text('{"name": "of something else"}')
    for write in (session.save, lambda path: make_engine().new_session(save_to=path)):
        with pytest.raises(InvalidRequest, match=r"holds manifest\.json, which belongs to no saved session"):
            write(tmp_path)
        with pytest.raises(InvalidRequest, match="no session can be saved there"):
            write(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").rename(tmp_path / "letter.txt")
    with pytest.raises(InvalidRequest, match=r"holds letter\.txt"):
        session.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_new_session_does_not_take_the_place_of_a_saved_one(make_engine: MakeEngine, tmp_path: Path) -> None:
    make_engine().new_session().save(tmp_path)
    with pytest.raises(InvalidRequest, match="holds a saved session; restore it"):
        make_engine().new_session(save_to=tmp_path)
    make_engine().restore(tmp_path, save_to=tmp_path)


def test_another_model_or_dtype(make_engine: MakeEngine, tmp_path: Path) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(30))
    session.save(tmp_path / "saved")
    same_shape = salalocal.load(write_model(tmp_path / "other", tiny_config(), seed=1), device="cpu", dtype="float32")
    for engine in (make_engine("sl"), same_shape):
        with pytest.raises(BadSession, match=r"read by another model \(.*\), and its memory means nothing to"):
            engine.restore(tmp_path / "saved")
    with pytest.raises(BadSession, match=r"read in float32, .* is loaded in bfloat16; load it with dtype='float32'"):
        make_engine(dtype="bfloat16").restore(tmp_path / "saved")


def test_the_same_model_elsewhere_is_the_same_model(make_engine: MakeEngine, tmp_path: Path) -> None:
    session = make_engine().new_session()
    session.prefill(random_ids(30))
    session.save(tmp_path / "saved")
    copy = salalocal.load(write_model(tmp_path / "copy", tiny_config()), device="cpu", dtype="float32")
    assert_restored(copy.restore(tmp_path / "saved"), session)


def test_too_long_for_the_memory(make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    session = engine.new_session()
    session.prefill(random_ids(30))
    session.save(tmp_path)
    monkeypatch.setattr(Engine, "max_context_tokens", lambda _: 29)
    with pytest.raises(ContextTooLong, match="holds 30 tokens and 29 fit"):
        engine.restore(tmp_path)
