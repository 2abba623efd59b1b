"""The desk: what is kept, what is refused, who waits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from desk_watch import settled, until

import salalocal
from salalocal import Cancelled


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
    desk = make_desk(engine)
    desk.add(book)
    settled(desk)
    desk.read()
    assert engine.reached.wait(5)
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


def test_an_answer_streams_and_says_what_was_reused(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    desk.read()
    settled(desk)
    desk.ask("When was it built?")
    (turn,) = settled(desk).turns
    assert turn.answer == "The harbour was built in 1893."
    assert turn.usage is not None
    assert turn.usage.reused_tokens == 200
    assert turn.usage.prompt_tokens == 205
    assert turn.finished


def test_a_turn_keeps_its_quotes_and_what_was_read_for_it(engine, make_desk, book):
    place = salalocal.Place("harbour.md", line=1)
    engine.answer = "word7 word8"
    engine.passages = (salalocal.ReadPassage("word6 word7 word8", place, 0.5),)
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("When?")
    (turn,) = settled(desk).turns
    assert turn.passages == engine.passages
    assert turn.place == engine.passages[0]
    engine.quotes = (salalocal.QuoteMatch("word7 word8", place, 1.0, True),)
    desk.ask("When?")
    assert settled(desk).turns[1].quotes == engine.quotes
    assert desk.view().turns[1].place is None, "quotes have their own places"
    assert [message.content for message in engine.prompts[1]] == ["When?", "word7 word8", "When?"]


def test_a_question_reads_the_unread_first(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("When?")
    view = settled(desk)
    assert view.read_tokens == 200
    assert view.turns[0].usage.reused_tokens == 200


def test_a_stopped_answer_keeps_its_beginning_and_is_part_of_the_next_prompt(engine, make_desk, book):
    engine.answer = " ".join(f"a{n}" for n in range(500))
    engine.chunk_seconds = 0.002
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("Tell me all")
    until(desk, lambda view: bool(view.turns) and len(view.turns[0].answer) > 20)
    desk.stop()
    (turn,) = settled(desk).turns
    assert turn.answer.startswith("a0 a1 a2")
    assert "a499" not in turn.answer
    assert turn.notice.text == "Stopped."

    engine.chunk_seconds = 0.0
    desk.ask("And then?")
    settled(desk)
    assert [(message.role, message.content) for message in engine.prompts[-1]] == [
        ("user", "Tell me all"),
        ("assistant", turn.answer),
        ("user", "And then?"),
    ]


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


def test_a_refused_question_is_shown_and_left_out_of_the_next_prompt(engine, make_desk):
    engine.limit = 10
    desk = make_desk(engine)
    desk.ask("one two three four five six seven eight nine ten eleven")
    (turn,) = settled(desk).turns
    assert turn.notice.tone == "refused"
    assert turn.answer == ""
    desk.ask("short")
    assert settled(desk).turns[1].answer
    assert [message.content for message in engine.prompts[-1]] == ["short"]


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


def test_the_second_request_waits_and_is_told_so(engine, make_desk):
    engine.hold = threading.Event()
    desk = make_desk(engine)
    desk.ask("first question")
    assert engine.reached.wait(5)
    desk.ask("second question")
    view = desk.view()
    assert view.activity.label == "first question"
    assert view.activity.waiting == ("second question",)
    assert len(engine.prompts) == 1, "the engine served two at once"
    engine.hold.set()
    assert [turn.finished for turn in settled(desk).turns] == [True, True]


def test_stop_also_drops_what_waits(engine, make_desk):
    engine.hold = threading.Event()
    desk = make_desk(engine)
    desk.ask("first")
    assert engine.reached.wait(5)
    desk.ask("second")
    desk.stop()
    engine.hold.set()
    view = settled(desk)
    assert [turn.question for turn in view.turns] == ["first", "second"]
    assert view.turns[1].notice.text == "Stopped before it began."
    assert view.turns[1].finished
    assert not view.turns[1].waiting
    assert view.notices == ()


def test_a_question_is_in_the_conversation_while_it_waits_for_the_reading(engine, make_desk, book):
    engine.hold = threading.Event()
    desk = make_desk(engine)
    desk.add(book)
    settled(desk)
    desk.read()
    assert engine.reached.wait(5)
    desk.ask("When?")
    (turn,) = desk.view().turns
    assert (turn.question, turn.waiting, turn.finished) == ("When?", True, False)
    engine.hold.set()
    (turn,) = settled(desk).turns
    assert (turn.answer, turn.waiting) == ("The harbour was built in 1893.", False)


def test_a_new_conversation_keeps_the_question_that_waits_behind_it(engine, make_desk):
    engine.hold = threading.Event()
    desk = make_desk(engine)
    desk.ask("first")
    assert engine.reached.wait(5)
    desk.new_conversation()
    desk.ask("second")
    engine.hold.set()
    (turn,) = settled(desk).turns
    assert (turn.question, turn.answer) == ("second", "The harbour was built in 1893.")


def test_every_document_that_fails_leaves_its_own_notice(engine, make_desk, book, tmp_path):
    desk = make_desk(engine)
    desk.add(tmp_path / "gone.md", book, tmp_path / "lost.md")
    view = settled(desk)
    assert [item.name for item in view.items] == ["harbour.md"]
    assert [Path(notice.text.split(":")[0]).name for notice in view.notices] == ["gone.md", "lost.md"]


def test_a_question_too_long_with_the_documents_names_the_largest_until_one_is_gone(engine, make_desk, book):
    engine.limit = 202
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("When was all of it built?")
    view = settled(desk)
    notice = view.turns[0].notice
    assert notice.tone == "refused"
    assert "Take away 5 or more; largest: harbour.md (200)." in notice.text
    desk.remove(view.items[0].id)
    notice = settled(desk).turns[0].notice
    assert notice.tone == "info"
    assert notice.text.startswith("Not answered")


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


def test_a_new_conversation_keeps_what_was_read(engine, make_desk, book):
    desk = make_desk(engine)
    desk.add(book)
    desk.ask("When?")
    settled(desk)
    desk.new_conversation()
    assert settled(desk).turns == ()
    desk.ask("Where?")
    view = settled(desk)
    assert view.turns[0].usage.reused_tokens == 200
    assert len(engine.prompts[-1]) == 1


def test_an_unforeseen_error_is_said_once_and_the_next_request_works(engine, make_desk, caplog):
    engine.broken = ZeroDivisionError("division by zero")
    desk = make_desk(engine)
    desk.ask("first")
    view = settled(desk)
    assert "ZeroDivisionError" in view.notices[0].text
    assert view.notices[0].tone == "failed"
    assert view.turns[0].finished
    assert "division by zero" in caplog.text
    engine.broken = None
    desk.ask("second")
    assert settled(desk).turns[-1].answer == "The harbour was built in 1893."


def test_an_answer_cut_at_the_length_limit_says_so(engine, make_desk):
    desk = make_desk(engine, sampling=salalocal.Sampling(max_tokens=2))
    desk.ask("When?")
    (turn,) = settled(desk).turns
    assert turn.answer == "The harbour"
    assert "2 tokens" in turn.notice.text


def test_closing_ends_a_running_reading(engine, make_desk, book):
    engine.chunk_seconds = 0.05
    desk = make_desk(engine)
    desk.add(book)
    settled(desk)
    desk.read()
    assert engine.reached.wait(5)
    desk.close()
    assert 0 < desk.view().read_tokens < 200


def test_the_scripted_session_itself_stops_between_chunks(engine):
    cancel = threading.Event()
    cancel.set()
    session = engine.new_session()
    with pytest.raises(Cancelled) as stopped:
        session.prefill([1, 2, 3], cancel=cancel)
    assert stopped.value.length == 0


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
