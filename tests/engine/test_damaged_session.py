"""A saved session that is not byte for byte what was written is refused, and says which file is to blame."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive_sala import random_ids

from salalocal.cache.manifest import MANIFEST_NAME, Manifest, _digest, _text, read_manifest
from salalocal.engine import session_files
from salalocal.engine.engine import Engine
from salalocal.engine.session import Session
from salalocal.errors import BadSession

MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


@pytest.fixture(scope="module")
def saved(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three token files, the last with a block that is not full, and two states."""
    folder = tmp_path_factory.mktemp("saved")
    session = engine.new_session()
    session.prefill(random_ids(54), checkpoints_at=(20,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_files, "FILE_TOKENS", 32)
        session.save(folder)
    assert len(list(folder.iterdir())) == 6
    return folder


def regions(folder: Path) -> dict[str, tuple[Path, int, int]]:
    """Parts of the files: where they lie, from and to which byte."""
    found = {"manifest": (folder / MANIFEST_NAME, 0, (folder / MANIFEST_NAME).stat().st_size)}
    for kind, path in (
        ("tokens", folder / read_manifest(folder)[0].tokens[0].name),
        ("open block", folder / read_manifest(folder)[0].tokens[-1].name),
        ("state", folder / read_manifest(folder)[0].states[0].name),
        ("last state", folder / read_manifest(folder)[0].states[-1].name),
    ):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + length])
        found |= {f"length of {kind}": (path, 0, 8), f"header of {kind}": (path, 8, 8 + length)}
        for name, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if begin < end:
                found[f"{name} of {kind}"] = (path, begin, end)
    return found


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def assert_refused(engine: Engine, folder: Path, path: Path) -> None:
    with pytest.raises(BadSession) as refused:
        engine.restore(folder)
    text = str(refused.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_byte_may_differ(engine: Engine, saved: Path, data: st.DataObject) -> None:
    where = regions(saved)
    path, begin, end = where[data.draw(st.sampled_from(sorted(where)))]
    at, mask = data.draw(st.integers(begin, end - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= mask
    with changed(path, bytes(damaged)):
        assert_refused(engine, saved, path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_file_may_be_shorter_or_longer(engine: Engine, saved: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(saved.iterdir())))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with changed(path, data.draw(st.sampled_from([whole[:cut], whole + whole[: cut + 1], whole[:cut] + bytes(8)]))):
        if path.read_bytes() != whole:
            assert_refused(engine, saved, path)


def test_no_file_may_be_missing_or_stand_for_another(engine: Engine, saved: Path, tmp_path: Path) -> None:
    for name in read_manifest(saved)[0].file_names:
        folder = tmp_path / name
        shutil.copytree(saved, folder)
        (folder / name).unlink()
        with pytest.raises(BadSession, match=f"{name}: is missing"):
            engine.restore(folder)
        (folder / name).mkdir()
        with pytest.raises(BadSession, match=f"{name}: "):
            engine.restore(folder)
    first, last = (saved / file.name for file in read_manifest(saved)[0].states)
    with changed(first, last.read_bytes()):
        assert_refused(engine, saved, first)


def test_a_refused_session_can_be_saved_over(engine: Engine, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / MANIFEST_NAME).write_bytes((saved / MANIFEST_NAME).read_bytes()[:200])
    session = engine.new_session()
    session.prefill(random_ids(10))
    session.save(tmp_path / "copy")
    assert engine.restore(tmp_path / "copy").token_ids == session.token_ids
    assert len(list((tmp_path / "copy").iterdir())) == 4, "what belonged to the old one is gone"


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_other_versions_are_named(engine: Engine, saved: Path, version: object) -> None:
    path = saved / MANIFEST_NAME
    body = json.loads(path.read_bytes())
    with (
        changed(path, json.dumps({**body, "version": version}).encode()),
        pytest.raises(BadSession, match=f"format version {version!r}; this salalocal reads version 1"),
    ):
        engine.restore(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "of something else"}', "[" * 100_000, "\xff", "NaN"])
def test_what_is_no_manifest(engine: Engine, saved: Path, text: str) -> None:
    with changed(saved / MANIFEST_NAME, text.encode("latin-1")):
        assert_refused(engine, saved, saved / MANIFEST_NAME)


def _file(kind: str, index: int, **fields: object) -> Callable[[dict], None]:
    return lambda body: body[kind][index].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.pop("length"),
        lambda body: body.update(length=53),
        lambda body: body.update(length="54"),
        lambda body: body.update(block_size=0),
        lambda body: body.update(extra=1),
        lambda body: body.update(model="m"),
        lambda body: body["model"].pop("dtype"),
        lambda body: body["model"].update(dtype=32),
        lambda body: body.update(tokens={}),
        lambda body: body["tokens"].reverse(),
        lambda body: body["tokens"].pop(0),
        lambda body: body["states"].pop(),
        lambda body: body["states"].reverse(),
        lambda body: body.update(checkpoints=[20, 20]),
        lambda body: body.update(checkpoints=[30]),
        lambda body: body.update(checkpoints=[-1, 20]),
        _file("tokens", 0, name="../tokens-0123456789abcdef.safetensors"),
        _file("tokens", 0, name="/etc/passwd"),
        _file("tokens", 0, start=1),
        _file("tokens", 0, start=True),
        _file("tokens", 0, checksums=[1.5]),
        _file("tokens", 0, checksums=[1]),
        _file("states", 0, has_logits=1),
        _file("states", 0, has_logits=False),
        _file("states", 0, position=0),
    ],
)
def test_manifests_with_a_good_checksum_are_not_trusted(
    engine: Engine, saved: Path, change: Callable[[dict], object]
) -> None:
    body = json.loads((saved / MANIFEST_NAME).read_bytes())
    change(body)
    del body["sha256"]
    text = _text({**body, "sha256": _digest(body)})
    with changed(saved / MANIFEST_NAME, text), pytest.raises(BadSession):
        engine.restore(saved)


def test_the_manifest_comes_back_as_it_was(saved: Path) -> None:
    manifest, text = read_manifest(saved)
    assert isinstance(manifest, Manifest)
    assert manifest.to_bytes() == text == (saved / MANIFEST_NAME).read_bytes()


def test_nothing_is_damaged(engine: Engine, saved: Path) -> None:
    """The folder these tests work on."""
    assert isinstance(engine.restore(saved), Session)
