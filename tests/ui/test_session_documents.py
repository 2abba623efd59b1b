"""The desk's documents: counted, read, stopped, refused, taken away."""

from __future__ import annotations

import threading
from pathlib import Path

from desk_watch import reading_desk, settled, until


def test_a_document_is_counted_before_any_of_it_is_read(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    view = settled(desk)
    assert [(item.name, item.tokens) for item in view.items] == [("harbour.md", 200)]
    assert (view.read_tokens, view.total_tokens, view.unread_tokens) == (0, 200, 200)


def test_a_folder_shows_each_file_and_what_was_left_out(engine, make_desk, tmp_path):
    folder = tmp_path / "code"
    (folder / "src").mkdir(parents=True)
    (folder / "readme.md").write_text("one two three")
    (folder / "src" / "main.py").write_text("four five")
    (folder / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    desk = make_desk(engine)
    desk.add(folder)
    (item,) = settled(desk).items
    assert {file.path: file.tokens for file in item.files} == {"readme.md": 3, "src/main.py": 2}
    assert [one.path for one in item.skipped] == ["logo.png"]
    assert item.skipped[0].reason


def test_reading_shows_progress_and_ends_with_everything_read(engine, make_desk, book):
    engine.hold = threading.Event()
    desk = reading_desk(engine, make_desk, book)
    reading = until(desk, lambda view: view.activity is not None and view.activity.reading is not None)
    assert (reading.activity.task, reading.activity.reading.total_tokens) == ("reading", 200)
    engine.hold.set()
    assert settled(desk).read_tokens == 200


def test_a_cancelled_reading_keeps_what_was_read_and_goes_on_from_there(engine, make_desk, book):
    engine.chunk_seconds = 0.005
    desk = make_desk(engine)
    desk.add(book)
    settled(desk)
    desk.read()
    until(desk, lambda view: view.activity.reading is not None and view.activity.reading.done_tokens >= 20)
    desk.stop()
    stopped = settled(desk)
    assert 20 <= stopped.read_tokens < 200
    assert [notice.text for notice in stopped.notices] == ["Stopped. What was read is kept."]

    desk.read()
    resumed = until(desk, lambda view: view.activity is None or view.activity.reading is not None)
    assert resumed.activity is not None
    assert resumed.activity.reading.done_tokens >= stopped.read_tokens, "it started again from the beginning"
    assert settled(desk).read_tokens == 200
    assert desk.view().notices == ()


def test_what_does_not_fit_is_refused_in_one_sentence_and_the_desk_goes_on(engine, make_desk, book, tmp_path):
    engine.limit = 100
    desk = make_desk(engine)
    desk.add(book)
    desk.read()
    view = settled(desk)
    (notice,) = view.notices
    assert notice.tone == "refused"
    assert "200 tokens do not fit" in notice.text
    assert "100" in notice.text
    assert view.read_tokens == 0

    desk.remove(view.items[0].id)
    short = tmp_path / "short.txt"
    short.write_text("only a few words")
    desk.add(short)
    desk.read()
    view = settled(desk)
    assert view.notices == ()
    assert view.read_tokens == 4


def test_an_unreadable_file_is_one_sentence_and_not_on_the_shelf(engine, make_desk, tmp_path):
    desk = make_desk(engine)
    desk.add(tmp_path / "nowhere.pdf")
    view = settled(desk)
    assert view.items == ()
    (notice,) = view.notices
    assert notice.tone == "refused"
    assert "nowhere.pdf" in notice.text
    assert "Traceback" not in notice.text


def test_the_same_document_twice_is_refused(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    desk.add(book)
    view = settled(desk)
    assert len(view.items) == 1
    assert view.notices[0].text == "Already here: harbour.md"


def test_an_uploaded_copy_is_gone_once_its_text_is_here(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book, then_delete=True)
    assert len(settled(desk).items) == 1
    assert not book.exists()


def test_every_document_that_fails_leaves_its_own_notice(engine, make_desk, book, tmp_path):
    desk = make_desk(engine)
    desk.add(tmp_path / "gone.md", book, tmp_path / "lost.md")
    view = settled(desk)
    assert [item.name for item in view.items] == ["harbour.md"]
    assert [Path(notice.text.split(":")[0]).name for notice in view.notices] == ["gone.md", "lost.md"]


def test_a_document_added_later_is_read_behind_the_others(engine, make_desk, book, tmp_path):
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("When?")
    settled(desk)
    second = tmp_path / "second.txt"
    second.write_text("appendix with five more words")
    desk.add(second)
    view = settled(desk)
    assert (view.read_tokens, view.total_tokens) == (200, 205)
    desk.ask("And now?")
    assert settled(desk).turns[-1].usage.reused_tokens == 205


def test_taking_the_first_document_away_starts_reading_anew(engine, make_desk, book, tmp_path):
    second = tmp_path / "second.txt"
    second.write_text("appendix with five more words")
    desk = make_desk(engine)
    desk.add(book)
    desk.add(second)
    desk.read()
    view = settled(desk)
    desk.remove(view.items[0].id)
    view = settled(desk)
    assert (view.read_tokens, view.total_tokens) == (0, 5)


def test_closing_ends_a_running_reading(engine, make_desk, book):
    engine.chunk_seconds = 0.05
    desk = reading_desk(engine, make_desk, book)
    desk.close()
    assert 0 < desk.view().read_tokens < 200


def test_a_path_that_is_a_folder_is_named_by_its_last_part(engine, make_desk, tmp_path):
    folder = tmp_path / "shelf"
    folder.mkdir()
    (folder / "a.txt").write_text("x y")
    desk = make_desk(engine)
    desk.add(Path(folder))
    assert settled(desk).items[0].name == "shelf"


def test_stop_while_a_folder_is_counted_adds_nothing(engine, make_desk, tmp_path, monkeypatch):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.txt").write_text("some words")
    desk = make_desk(engine)
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda content: (desk.stop(), encode(content))[1])
    desk.add(folder)
    view = settled(desk)
    assert view.items == ()
    assert [notice.text for notice in view.notices] == ["Stopped; not added: many."]


def test_the_reader_keeps_a_checkpoint_where_questions_begin(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    desk.read()
    settled(desk)
    assert engine.checkpoints == [200]


def test_documents_longer_than_the_trained_length_are_noted_not_refused(engine, make_desk, book):
    engine.trained = 150
    desk = make_desk(engine)
    desk.add(book)
    assert "trained" in settled(desk).length_note
    desk.read()
    assert settled(desk).read_tokens == 200
