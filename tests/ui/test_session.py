"""The desk's conversation: what is answered, what is refused, who waits."""

from __future__ import annotations

import threading

import pytest
from desk_watch import reading_desk, settled, until

import salalocal
from salalocal import Cancelled


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
    desk = reading_desk(engine, make_desk, book)
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


def test_the_scripted_session_itself_stops_between_chunks(engine):
    cancel = threading.Event()
    cancel.set()
    session = engine.new_session()
    with pytest.raises(Cancelled) as stopped:
        session.prefill([1, 2, 3], cancel=cancel)
    assert stopped.value.length == 0
