"""What the page says: counts, bars, refusals, places; and that nothing from a file is ever markup."""

from __future__ import annotations

import pytest

import salalocal
from salalocal_ui import chat_pane, library_pane, wording
from salalocal_ui.state import Activity, FileCount, Item, Notice, Reading, Turn, View


def item(name: str = "book.pdf", tokens: int = 1234, **more: object) -> Item:
    return Item(1, name, (FileCount(name, tokens),), more.get("skipped", ()))


def view(**parts: object) -> View:
    return View(**{"version": 1, "model": "scripted", "limit_tokens": 8192, **parts})


def test_the_empty_window_says_what_to_do():
    empty = view()
    assert "Nothing here yet" in library_pane.shelf_html(empty)
    assert "Add a document" in chat_pane.placeholder(empty)
    assert not library_pane.can_read(empty)
    assert library_pane.status_html(empty).count("sl-bar") == 0


def test_a_folder_is_a_tree_with_a_sum_for_every_folder():
    files = (FileCount("a.md", 1), FileCount("src/b.py", 20), FileCount("src/in/c.py", 300))
    page = library_pane.shelf_html(view(items=(Item(1, "code", files, ()),)))
    assert "321" in page
    assert "320" in page
    assert page.index("src/") < page.index("in/") < page.index("c.py") < page.index("b.py")


def test_a_folder_of_many_files_is_counted_in_full_and_shown_in_part():
    files = tuple(FileCount(f"f{n:05}.py", 1) for n in range(20_000))
    page = library_pane.shelf_html(view(items=(Item(1, "code", files, ()),)))
    assert "20,000" in page
    assert page.count("<li") <= library_pane.MOST_ROWS + 2
    assert "19,600 more" in page


def test_skipped_files_stand_there_with_their_reasons():
    skipped = (salalocal.Skipped("logo.png", "binary"), salalocal.Skipped(".env", "may hold secrets"))
    page = library_pane.shelf_html(view(items=(item(skipped=skipped),)))
    assert "2 files skipped" in page
    assert "may hold secrets" in page


def test_nothing_from_a_file_or_a_model_becomes_markup():
    evil = '<img src=x onerror="alert(1)">'
    place = salalocal.Place(evil, line=3)
    turn = Turn(
        evil,
        "answer",
        quotes=(salalocal.QuoteMatch(evil, place, 1.0, True), salalocal.QuoteMatch(evil, None, 0.0, True)),
        passages=(salalocal.ReadPassage(evil, place, 0.1),),
        notice=Notice(evil, "refused"),
        finished=True,
    )
    shown = view(
        model=evil,
        items=(Item(1, evil, (FileCount(f"{evil}/{evil}", 1),), (salalocal.Skipped(evil, evil),)),),
        total_tokens=9999,
        notices=(Notice(evil),),
        activity=Activity("adding", evil, waiting=(evil,)),
        turns=(turn,),
    )
    pages = [
        library_pane.heading_html(shown),
        library_pane.shelf_html(shown),
        library_pane.status_html(shown),
        chat_pane.after_html(turn),
        chat_pane.after_html(Turn("q", "alert", passages=(salalocal.ReadPassage(evil, place, 0.9),))),
        str(chat_pane.chat_messages(shown)[0]["content"]),
    ]
    for page in pages:
        assert "<img" not in page
        assert "&lt;img" in page


def test_a_question_with_blank_lines_and_markdown_stays_one_piece_of_text():
    (message, _) = chat_pane.chat_messages(view(turns=(Turn("one\n\n# two **three**"),)))
    assert message["content"] == '<div class="sl-asked">one<br><br># two **three**</div>'


def test_reading_shows_percent_speed_and_time_left():
    reading = Reading(500, 2000, 1234.5, 75.2)
    page = library_pane.status_html(view(items=(item(),), activity=Activity("reading", "", reading)))
    assert 'aria-valuenow="25"' in page
    assert "25%" in page
    assert "1,234 tokens/s" in page
    assert "1 min 16 s left" in page


def test_what_does_not_fit_is_said_before_reading_with_numbers_and_the_largest():
    small, big = item("small.md", 1000), Item(2, "big.pdf", (FileCount("big.pdf", 9000),), ())
    over = view(items=(small, big), total_tokens=10_010)
    page = library_pane.status_html(over)
    for part in ("10,010", "8,192", "1,818", "big.pdf (9,000)"):
        assert part in page
    assert page.index("big.pdf") < page.index("small.md")
    assert not library_pane.can_read(over)


def test_an_answer_is_followed_by_its_places_and_by_what_was_reused():
    place = salalocal.Place("book.pdf", page=3)
    turn = Turn(
        "q",
        "“one” and “two”",
        quotes=(salalocal.QuoteMatch("one", place, 1.0, True), salalocal.QuoteMatch("two", None, 0.1, True)),
        usage=salalocal.Usage(1010, 990, 20, 0.1, 2.0),
        finished=True,
    )
    _, answer, after = chat_pane.chat_messages(view(turns=(turn,)))
    assert answer["content"] == "“one” and “two”"
    assert "book.pdf, page 3" in after["content"]
    assert "not in the text" in after["content"]
    assert "reused 990 tokens, read 20" in after["content"]
    assert "10.0 tokens/s" in after["content"]
    assert "\n" not in after["content"], "a blank line would end the HTML block and start Markdown"


def test_what_is_not_word_for_word_shows_the_documents_own_words():
    place = salalocal.Place("book.pdf", page=3)
    similar = salalocal.QuoteMatch("It was built in 1894.", place, 0.9, False, found="It was begun in 1893.")
    exact = salalocal.QuoteMatch("Every ship was blue.", place, 1.0, True, found="Every  ship was blue.")
    page = chat_pane.after_html(Turn("q", "a", quotes=(similar, exact), finished=True))
    assert "begun in 1893" in page
    assert "1894" not in page
    assert page.count("similar, not word for word") == 1
    assert page.index("similar") < page.index("Every ship was blue.")


BUILT = salalocal.ReadPassage("It was begun in 1893.", salalocal.Place("book.pdf", page=3), 0.624)
SHIPS = salalocal.ReadPassage("Every ship was blue.", salalocal.Place("ships.md", line=9), 0.07)


def test_what_was_read_for_an_answer_is_a_closed_list_of_places_and_shares():
    page = chat_pane.after_html(Turn("q", "The sea was calm that year.", passages=(BUILT, SHIPS), finished=True))
    closed, _, opened = page.partition("<details")
    assert closed == '<div class="sl-after">', "nothing of it is shown openly"
    assert opened.startswith(' class="sl-read"><summary>What was read for this answer</summary>')
    first, second = opened.split("<li>")[1:]
    for part in ("It was begun in 1893.", "book.pdf, page 3", "width:62%", ">62%<"):
        assert part in first
    for part in ("Every ship was blue.", "ships.md, line 9", "width:7%", ">7%<"):
        assert part in second
    assert "\n" not in page, "a blank line would end the HTML block and start Markdown"
    assert "<details" not in chat_pane.after_html(Turn("q", "a", usage=salalocal.Usage(1, 0, 1, 0.1, 0.1)))


@pytest.mark.parametrize(
    ("answer", "passages", "shown"),
    [
        ("In 1893", (BUILT, SHIPS), True),
        ("In 1894", (BUILT, SHIPS), False),
        ("blue", (SHIPS, BUILT), False),
    ],
)
def test_a_short_answer_shows_the_passage_it_was_read_from(answer, passages, shown):
    openly = chat_pane.after_html(Turn("q", answer, passages=passages, finished=True)).partition("<details")[0]
    assert ("<q><bdi>It was begun in 1893.</bdi></q>" in openly) is shown
    assert ("book.pdf, page 3" in openly) is shown


def test_what_was_read_stands_between_the_places_and_the_figures():
    quote = salalocal.QuoteMatch("begun in 1893", BUILT.place, 1.0, True)
    usage = salalocal.Usage(1010, 990, 20, 0.1, 2.0)
    page = chat_pane.after_html(Turn("q", "“begun in 1893”", (quote,), (BUILT,), usage, finished=True))
    assert page.count("sl-quotes") == 1, "the quote has its place; the passage is not shown openly beside it"
    assert page.index("sl-quotes") < page.index("sl-read") < page.index("sl-usage")


def test_a_question_that_waits_says_for_what():
    turns = (Turn("When?", waiting=True),)
    activity = Activity("reading", "the documents", waiting=("When?",))
    _, pending = chat_pane.chat_messages(view(turns=turns, activity=activity))
    assert "Waiting for the reading" in pending["content"]
    page = library_pane.status_html(view(activity=activity))
    assert "When?</bdi></p>" in page, "two marks end the sentence"
    page = library_pane.status_html(view(activity=Activity("reading", "", waiting=("book.pdf",))))
    assert "book.pdf</bdi>.</p>" in page


def test_ask_and_read_give_way_to_stop_and_cancel():
    assert chat_pane.answering(view(activity=Activity("answering", "q")))
    assert not library_pane.stoppable(view(activity=Activity("answering", "q")))
    assert library_pane.stoppable(view(activity=Activity("reading", "")))
    assert not library_pane.can_read(view(items=(item(),), total_tokens=5, activity=Activity("reading", "")))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s left"),
        (59.2, "1 min 00 s left"),
        (61, "1 min 01 s left"),
        (3599.5, "1 h 00 min left"),
        (7500, "2 h 05 min left"),
        (float("inf"), "time left not known yet"),
        (float("nan"), "time left not known yet"),
    ],
)
def test_time_left(seconds, text):
    assert wording.time_left(seconds) == text


@pytest.mark.parametrize(
    ("speed", "text"), [(0.0, ""), (float("inf"), ""), (8.26, "8.3 tokens/s"), (1204, "1,204 tokens/s")]
)
def test_rate(speed, text):
    assert wording.rate(speed) == text
